#include "cpu.h"

#include "../cpu/math.h"

namespace dlops {
namespace {

Vec apply(MathFunction f, Vec x) {
  Vec s, c;
  switch (f) {
    case MathFunction::exp2: return exp2(x);
    case MathFunction::exp: return exp(x);
    case MathFunction::log: return log(x);
    case MathFunction::sigmoid: return sigmoid(x);
    case MathFunction::silu: return silu(x);
    case MathFunction::tanh: return tanh(x);
    case MathFunction::sin: sincos(x, s, c); return s;
    case MathFunction::cos: sincos(x, s, c); return c;
  }
  return x;
}

void evaluate(MathFunction f, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store_part(y + i, apply(f, load_part(x + i, count, 1.f)), count);
  }
}

}  // namespace

extern const MathCpu DLOPS_TABLE = {evaluate};

}  // namespace dlops
