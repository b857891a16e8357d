// Convolution of groups of a few channels, as many filters as channels in each: lanes are filters, and a pixel's lanes are
// permuted so that every filter of a group meets its channels one after another.
#pragma once
#include "depthwise_image.h"

namespace dlops {
namespace {

// Channel i of each lane's group.
template <int kGroup>
DLOPS_INLINE Vec channel_of_group(Vec v, int i) {
  VecI from;
  for (int l = 0; l < kLanes; l++) from[l] = l / kGroup * kGroup + i;
  return __builtin_shuffle(v, from);
}

struct RowOfGroups {
  const float* image;    // the first output's first tap
  const float* weights;  // [height, width of the kernel, channels of a group, kLanes]
  int64_t height, line;  // line: from one tap row to the next
};

// R outputs of a row, a kernel K wide. A permuted pixel serves all the outputs that it meets.
template <int kGroup, int K, int kStride, int R>
__attribute__((noinline)) void add_groups(const RowOfGroups& r, int64_t q, float* sums) {
  Vec sum[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sum[i] = zero();
  for (int64_t y = 0; y < r.height; y++) {
    const float* p = r.image + y * r.line + q * kStride * kLanes;
    const float* w = r.weights + y * K * kGroup * kLanes;
#pragma GCC unroll 32
    for (int x = 0; x < (R - 1) * kStride + K; x++) {
      const Vec pixel = load(p + x * kLanes);
#pragma GCC unroll 16
      for (int c = 0; c < kGroup; c++) {
        const Vec channel = channel_of_group<kGroup>(pixel, c);
#pragma GCC unroll 8
        for (int k = 0; k < K; k++)
          if ((x - k) % kStride == 0 && x >= k && (x - k) / kStride < R) {
            Vec& s = sum[(x - k) / kStride];
            s = fma(channel, load(w + (k * kGroup + c) * kLanes), s);
          }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) store(sums + (q + i) * kLanes, sum[i]);
}

#if defined(__AVX512F__)
constexpr int kGroupOutputs = 14;
#else
constexpr int kGroupOutputs = 7;
#endif

// The last outputs reach back where the number is no multiple.
template <int kGroup, int K, int kStride>
DLOPS_INLINE void add_row_of_groups(const RowOfGroups& r, int64_t outs, float* sums) {
  constexpr int R = kGroupOutputs;
  if (outs >= R)
    for (int64_t q = 0; q < outs; q += R) add_groups<kGroup, K, kStride, R>(r, smaller(q, outs - R), sums);
  else
    for (int64_t q = 0; q < outs; q++) add_groups<kGroup, K, kStride, 1>(r, q, sums);
}

// Row y of a tile's outputs of one block, see ConvolveRow.
template <int kGroup, int K, int kStride>
void convolve_groups(const Axis (&axes)[3], const Tile& t, const float* block, const float* weights, int64_t,
                     int64_t y, float* sums) {
  const int64_t line = t.window[2].count * kLanes;
  const RowOfGroups r = {block + y * axes[1].stride * line, weights, axes[1].taps, line * axes[1].dilation};
  add_row_of_groups<kGroup, K, kStride>(r, t.size[2], sums);
}

}  // namespace
}  // namespace dlops
