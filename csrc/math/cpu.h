// The elementary functions of csrc/cpu/math.h as callable kernels, so that tests and readers can measure them.
#pragma once
#include <cstdint>

#include "../api.h"
#include "../catalogue.h"

namespace dlops {

enum class MathFunction : int { exp2, exp, log, sigmoid, silu, tanh, sin, cos };

struct MathCpu { void (*evaluate)(MathFunction f, const float* x, float* y, int64_t n); };

extern const MathCpu math_generic, math_avx2, math_avx512;
DLOPS_API const MathCpu& math_cpu();  // the table of the level in use

}  // namespace dlops
