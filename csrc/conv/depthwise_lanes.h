// Depthwise convolution with channels in lanes: a block of kLanes channels, [depth, height, width, kLanes] in scratch.
#pragma once
#include "depthwise_image.h"

namespace dlops {
namespace {

// What the sums of one row of outputs need. Distances are in floats.
struct RowOfBlock {
  const float* image;    // the first output's first tap
  const float* weights;  // [depth, height, width of the kernel, kLanes]
  int64_t taps[3], first_line,
      last_line;  // of the height taps those in [first_line, last_line) meet the image
  int64_t slice, line, next_tap, next_output;
};

// R sums side by side: for each tap its weights in a register, every product's pixel from L1.
template <int R, int kStride>
__attribute__((noinline)) void add_taps(const RowOfBlock& r, const float* image, float* sums) {
  const int64_t stride = kStride ? kStride * kLanes : r.next_output;
  Vec sum[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sum[i] = zero();
  for (int64_t z = 0; z < r.taps[0]; z++)
    for (int64_t y = r.first_line; y < r.last_line; y++) {
      const float* p = image + z * r.slice + y * r.line;
      const float* w = r.weights + (z * r.taps[1] + y) * r.taps[2] * kLanes;
      for (int64_t x = 0; x < r.taps[2]; x++, p += r.next_tap, w += kLanes) {
        const Vec tap = load(w);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) sum[i] = fma(load(p + i * stride), tap, sum[i]);
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) store(sums + i * kLanes, sum[i]);
}

template <int R>
DLOPS_INLINE void add_taps(const RowOfBlock& r, int64_t q, float* sums) {
  const float* image = r.image + q * r.next_output;
  sums += q * kLanes;
  if (r.next_output == kLanes) return add_taps<R, 1>(r, image, sums);
  if (r.next_output == 2 * kLanes) return add_taps<R, 2>(r, image, sums);
  add_taps<R, 0>(r, image, sums);
}

// All outputs of the row. The last R reach back where R does not divide their number.
template <int R>
DLOPS_INLINE void add_row_by(const RowOfBlock& r, int64_t outs, float* sums) {
  for (int64_t q = 0; q < outs; q += R) add_taps<R>(r, smaller(q, outs - R), sums);
}
DLOPS_INLINE void add_row(const RowOfBlock& r, int64_t outs, float* sums) {
  if (outs >= 14) return add_row_by<14>(r, outs, sums);
  if (outs >= 7) return add_row_by<7>(r, outs, sums);
  if (outs >= 4) return add_row_by<4>(r, outs, sums);
  add_row_by<1>(r, outs, sums);
}

// A wide kernel of stride 1 and dilation 1: for each pixel in a register, every product's weights from L1. Only positions
// [begin, end) of the row, those inside of the image, are met.
template <int R>
__attribute__((noinline)) void add_pixels(const RowOfBlock& r, int64_t q, int64_t begin, int64_t end,
                                          float* sums) {
  const int64_t width = r.taps[2];
  Vec sum[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sum[i] = zero();
  for (int64_t z = 0; z < r.taps[0]; z++)
    for (int64_t y = r.first_line; y < r.last_line; y++) {
      const float* line = r.image + z * r.slice + y * r.line;
      const float* w = r.weights + (z * r.taps[1] + y) * width * kLanes;
      for (int64_t x = larger(begin, q); x < smaller(end, q + R - 1 + width); x++) {
        const Vec pixel = load(line + x * kLanes);
        const int64_t k = x - q;  // the tap at which output q meets it; output q + i: k - i
        const float* tap = w + k * kLanes;
        if (k >= R - 1 && k < width) {
#pragma GCC unroll 16
          for (int i = 0; i < R; i++) sum[i] = fma(pixel, load(tap - i * kLanes), sum[i]);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < R; i++)
            if (k >= i && k - i < width) sum[i] = fma(pixel, load(tap - i * kLanes), sum[i]);
        }
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) store(sums + (q + i) * kLanes, sum[i]);
}

template <int R>
DLOPS_INLINE void add_wide_row_by(const RowOfBlock& r, int64_t outs, int64_t begin, int64_t end,
                                  float* sums) {
  for (int64_t q = 0; q < outs; q += R) add_pixels<R>(r, smaller(q, outs - R), begin, end, sums);
}
DLOPS_INLINE void add_wide_row(const RowOfBlock& r, int64_t outs, int64_t begin, int64_t end, float* sums) {
  if (outs >= 14) return add_wide_row_by<14>(r, outs, begin, end, sums);
  if (outs >= 7) return add_wide_row_by<7>(r, outs, begin, end, sums);
  add_wide_row_by<1>(r, outs, begin, end, sums);
}

constexpr int64_t kWideKernel = 13;

// The taps of an axis that meet the image, for the output whose first tap lies at position `at`.
struct Taps { int64_t begin, end; };
DLOPS_INLINE Taps taps_inside(const Axis& a, int64_t at) {
  if (a.mode != PaddingMode::zeros) return {0, a.taps};
  const int64_t length = (a.in - 1) * a.step + 1;
  const int64_t end = at >= length ? 0 : smaller(a.taps, (length - 1 - at) / a.dilation + 1);
  const int64_t begin = at >= 0 ? 0 : ceil_div(-at, a.dilation);
  return {smaller(begin, end), end};
}

// sums [width of the tile, kLanes] of one block: row (z, y) of the tile's outputs.
void convolve_row(const Axis (&axes)[3], const Tile& t, const float* block, const float* weights, int64_t z,
                  int64_t y, float* sums) {
  const Window &wy = t.window[1], &wx = t.window[2];
  const int64_t line = wx.count * kLanes, slice = line * wy.count, at = y * axes[1].stride;
  const Taps inside = taps_inside(axes[1], wy.first + at);
  RowOfBlock r;
  r.image = block + z * axes[0].stride * slice + at * line;
  r.weights = weights;
  for (int d = 0; d < 3; d++) r.taps[d] = axes[d].taps;
  r.first_line = inside.begin;
  r.last_line = inside.end;
  r.slice = slice * axes[0].dilation;
  r.line = line * axes[1].dilation;
  r.next_tap = axes[2].dilation * kLanes;
  r.next_output = axes[2].stride * kLanes;
  const bool simple = axes[2].stride == 1 && axes[2].dilation == 1 && axes[2].step == 1;
  if (!simple || axes[2].taps < kWideKernel) return add_row(r, t.size[2], sums);
  const bool zeros = axes[2].mode == PaddingMode::zeros;
  add_wide_row(r, t.size[2], zeros ? wx.at(wx.begin) : 0, zeros ? wx.at(wx.end) : wx.count, sums);
}

}  // namespace
}  // namespace dlops
