// Depthwise convolution of a float32 channels-last image where it lies: channels in lanes, nothing brought to scratch. For
// kernels 3, 5 and 7 wide, stride and dilation 1 along a row; what lies outside of the image is skipped.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "depthwise_blocks.h"
#include "depthwise_lanes.h"

namespace dlops {
namespace {

// One row of outputs of one block of channels. Distances are in floats.
struct RowOfPixels {
  const float* image;    // where the first tap of the row's taps lies at position 0 of the width
  const float* weights;  // [depth, height, width of the kernel, kLanes]
  Taps slices, lines;    // those that meet the image
  int64_t height, slice, line, pixel, padding, width;
};

// R sums side by side: the weights of a kernel row in registers, a pixel serves all the outputs that it meets.
template <int K, int R, bool kEdge>
__attribute__((noinline)) void add_lines(const RowOfPixels& r, int64_t q, float* sums) {
  Vec sum[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sum[i] = zero();
  for (int64_t z = r.slices.begin; z < r.slices.end; z++)
    for (int64_t y = r.lines.begin; y < r.lines.end; y++) {
      const float* line = r.image + z * r.slice + y * r.line;
      const float* w = r.weights + (z * r.height + y) * K * kLanes;
      Vec tap[K];
#pragma GCC unroll 8
      for (int k = 0; k < K; k++) tap[k] = load(w + k * kLanes);
      const int64_t first = q - r.padding;
#pragma GCC unroll 32
      for (int x = 0; x < R + K - 1; x++) {
        if (kEdge && (first + x < 0 || first + x >= r.width)) continue;
        const Vec pixel = load(line + (first + x) * r.pixel);
#pragma GCC unroll 16
        for (int k = 0; k < K; k++)
          if (x >= k && x - k < R) sum[x - k] = fma(pixel, tap[k], sum[x - k]);
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) store(sums + (q + i) * kLanes, sum[i]);
}

template <int K, int R>
void add_pixels_row(const RowOfPixels& r, int64_t outs, float* sums) {
  for (int64_t next = 0; next < outs; next += R) {
    const int64_t q = smaller(next, outs - R), first = q - r.padding;  // the last reach back
    if (first >= 0 && first + R + K - 1 <= r.width)
      add_lines<K, R, false>(r, q, sums);
    else
      add_lines<K, R, true>(r, q, sums);
  }
}

#if defined(__AVX512F__)
constexpr int kPixelOutputs = 14;
#else
constexpr int kPixelOutputs = 7;
#endif
template <int K>
void add_pixels_row(const RowOfPixels& r, int64_t outs, float* sums) {
  if (outs >= kPixelOutputs) return add_pixels_row<K, kPixelOutputs>(r, outs, sums);
  if (outs >= 7) return add_pixels_row<K, 7>(r, outs, sums);
  add_pixels_row<K, 1>(r, outs, sums);
}

inline bool fits_pixels(const Depthwise& p, Dtype dtype) {
  const Axis& x = p.axes[2];
  for (const Axis& a : p.axes)
    if (a.step != 1 || a.mode != PaddingMode::zeros) return false;
  return dtype == Dtype::f32 && p.channels_last && p.multiplier == 1 && p.filters % kLanes == 0 &&
         x.stride == 1 && x.dilation == 1 && (x.taps == 3 || x.taps == 5 || x.taps == 7);
}

// One row of outputs of all channels.
void pixels_row(const Depthwise& p, int64_t n, int64_t z, int64_t y, float* sums) {
  const Axis(&a)[3] = p.axes;
  const int64_t depth_at = z * a[0].stride - a[0].padding, height_at = y * a[1].stride - a[1].padding;
  const int64_t line = a[2].in * p.filters, slice = a[1].in * line;
  RowOfPixels r;
  r.slices = taps_inside(a[0], depth_at);
  r.lines = taps_inside(a[1], height_at);
  r.height = a[1].taps;
  r.slice = slice * a[0].dilation;
  r.line = line * a[1].dilation;
  r.pixel = p.filters;
  r.padding = a[2].padding;
  r.width = a[2].in;
  const int64_t from = n * p.in_pixels() * p.filters + depth_at * slice + height_at * line;
  const int64_t to = (n * p.out_pixels() + (z * a[1].out + y) * a[2].out) * p.filters,
                row = a[2].out * p.filters;
  const auto *bias = static_cast<const float*>(p.epilogue.bias),
             *residual = static_cast<const float*>(p.epilogue.residual);
  const float* image = static_cast<const float*>(p.image);
  float* result = static_cast<float*>(p.result) + to;
  for (int64_t f = 0; f < p.filters; f += kLanes) {
    prefetch(result + row * (p.filters + f) / p.filters,
             ceil_div(row * kLanes, p.filters));  // of the next row
    prefetch(image + from + (a[1].taps - 1) * r.line + 2 * line + line * f / p.filters,
             line * kLanes / p.filters);
    r.image = image + from + f;
    r.weights = p.weights + f / kLanes * p.block_weights;
    if (a[2].taps == 3) add_pixels_row<3>(r, a[2].out, sums);
    if (a[2].taps == 5) add_pixels_row<5>(r, a[2].out, sums);
    if (a[2].taps == 7) add_pixels_row<7>(r, a[2].out, sums);
    finish_pixels(sums, a[2].out, kLanes, bias ? bias + f : nullptr, residual ? residual + to + f : nullptr,
                  result + f, p.filters, p.epilogue.activation);
  }
}

// Chunk: some rows of outputs of one sample.
constexpr int64_t kRowsWork = 1 << 18;  // products
void by_pixels(const Depthwise& p) {
  const int64_t lines = p.axes[0].out * p.axes[1].out, width = p.axes[2].out;
  const int64_t together = larger(1, kRowsWork / (width * p.filters * p.taps())),
                chunks = ceil_div(lines, together);
  parallel_for(p.threads, p.batch * chunks, [&](int64_t i) {
    cpu::Scratch sums(static_cast<size_t>(width * kLanes) * sizeof(float));
    const int64_t n = i / chunks, begin = i % chunks * together;
    for (int64_t l = begin; l < smaller(begin + together, lines); l++)
      pixels_row(p, n, l / p.axes[1].out, l % p.axes[1].out, sums.floats());
  });
}

}  // namespace
}  // namespace dlops
