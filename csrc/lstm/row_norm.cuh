// LayerNorm of a sample's row by the threads that have the sample: a warp, or a block.
#pragma once
#include "../cuda/reduce.h"
#include "units.cuh"

namespace dlops::lstm {

// Threads of a sample: enough for one turn but `most`, a warp at least; warps share a block.
inline RowGrid sample_grid(int64_t samples, int64_t hidden, int most) {
  int threads = 32;
  while (threads < most && threads < unit_chunks(hidden)) threads *= 2;
  const int together = threads == 32 ? 4 : 1;
  return {dim3(block_count(ceil_div(samples, together))), dim3(threads, together)};
}

// f(units) for the thread's units of a sample.
template <class F>
DLOPS_DEVICE void each_units(int64_t hidden, bool wide, F f) {
  for (int64_t first = static_cast<int64_t>(threadIdx.x) * kUnits; first < hidden;
       first += static_cast<int64_t>(blockDim.x) * kUnits)
    f(Units(first, hidden, wide));
}

// The result of a sample's threads.
template <class A>
DLOPS_DEVICE A sample_reduce(const A& a, A* scratch) {
  return blockDim.x > 32 ? block_reduce(a, scratch) : warp_reduce(a);
}

struct Normal {
  float mean, rstd;
  DLOPS_DEVICE float operator()(float x) const { return (x - mean) * rstd; }
};
DLOPS_DEVICE Normal normal_of(const Moments<float>& m, float eps) {
  return {m.mean, 1.f / sqrtf(m.m2 / m.count + eps)};
}

// The derivative: dx = rstd (g - mean of g - xhat mean of g xhat), where g is the gradient of xhat.
struct NormGradient {
  float rstd, mean_g, mean_gx;
  DLOPS_DEVICE float operator()(float g, float xhat) const { return rstd * (g - mean_g - xhat * mean_gx); }
};
DLOPS_DEVICE NormGradient norm_gradient(float rstd, const Sums<2>& sums, int64_t size) {
  return {rstd, sums.v[0] / static_cast<float>(size), sums.v[1] / static_cast<float>(size)};
}

}  // namespace dlops::lstm
