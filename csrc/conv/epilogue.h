// What follows the sum, on the CPU: bias, residual, activation, the rounding to the result's type.
#pragma once
#include "../cpu/math.h"
#include "../cpu/simd.h"
#include "params.h"

namespace dlops {
namespace {

// x Phi(x), Phi by libm lane by lane: the small values of a negative x keep their relative error. A pass with gelu is
// bound by it, whatever the convolution costs.
DLOPS_INLINE Vec gelu(Vec x) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 0; i < kLanes; i++) lane[i] = 0.5f * lane[i] * __builtin_erfcf(-0.70710678f * lane[i]);
  return load(lane);
}

DLOPS_INLINE Vec activate(Vec x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return select((x > zero()) | (x != x), x, zero());              // NaN stays
    case Activation::silu: return select((x > set1(-104.f)) | (x != x), silu(x), zero());  // 0 at -Inf
    case Activation::gelu: return gelu(x);
    case Activation::tanh: return tanh(x);
    case Activation::sigmoid: return sigmoid(x);
  }
  return x;
}

}  // namespace
}  // namespace dlops
