// LayerNorm of one row whose vectors lie block by block: at(block) is where a block's `gates` vectors begin.
#pragma once
#include "cell.h"

namespace dlops {
namespace {

struct RowMoments {
  float mean, rstd;
  Vec apply(Vec v) const { return (v - set1(mean)) * set1(rstd); }
};

// Two passes; the lanes past the last unit are zeros in the first, and left out of the second.
template <int gates, class At>
DLOPS_INLINE RowMoments row_moments(int64_t units, float eps, At at) {
  const float count = static_cast<float>(gates * units);
  Vec sum = zero();
  for (int64_t block = 0; block * kLanes < units; block++)
    for (int g = 0; g < gates; g++) sum = sum + load(at(block) + g * kLanes);
  const float mean = reduce_add(sum) / count;
  Vec squares = zero();
  for (int64_t block = 0; block * kLanes < units; block++) {
    const VecI exists = lane_index() < set1i(static_cast<int32_t>(units - block * kLanes));
    for (int g = 0; g < gates; g++) {
      const Vec d = select(exists, load(at(block) + g * kLanes) - set1(mean), zero());
      squares = fma(d, d, squares);
    }
  }
  return {mean, 1.f / __builtin_sqrtf(reduce_add(squares) / count + eps)};
}

}  // namespace
}  // namespace dlops
