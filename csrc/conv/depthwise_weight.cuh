// The weight gradient of a depthwise convolution: dw[o, k] = sum over samples and pixels of dy x, read at tap k. As in the forward
// pass each number that a thread loads serves all taps that meet it. Blocks own some filters, some taps and a part of the
// pixels (parts.cuh); a block's threads are added up in a fixed order.
//
//   columns   NCHW, square kernels, stride 1 along y: a thread has 8 numbers dy of a column, and all K x K sums
//   rows      NCHW, 1-D: a thread has a 16-byte chunk of dy and K sums
//   last      channels_last, stride 1 along x: a thread has 4 channels of 8 numbers dy along x, and a row of K sums
//   any       anything: a thread has one pixel (NCHW) or one filter (channels_last), and 8 sums
//
// columns and rows read memory once; last reads it once per row of taps, all but the first time from the L2 cache.
#pragma once
#include "../cuda/reduce.h"
#include "depthwise.cuh"
#include "parts.cuh"

namespace dlops::conv {

constexpr int kStrip = 8;  // numbers of dy that a thread holds
// A block of `last`: 32 channels, 16 strips at a time.
constexpr int kLastQuads = 8, kLastLanes = kRowThreads / kLastQuads;

// A part of [begin, end) units, of which a thread takes every blockDim.x-th.
struct Span { int64_t begin, end; };
DLOPS_DEVICE Span span_of(const Parts& parts, int64_t part, int64_t all) {
  const int64_t begin = part * parts.size, end = begin + parts.size;
  return {begin, end < all ? end : all};
}

constexpr int kTapsTogether = 8;

constexpr KernelInfo kDepthwiseWeightAny = DLOPS_CONV_CUDA_KERNEL(
    "conv_weight", "depthwise", "1 or 128 filters, 8 taps", "conv_depthwise_weight_any", 0);
template <class T, bool last>
__global__ void __launch_bounds__(kRowThreads, 4)
    conv_depthwise_weight_any(const __grid_constant__ ConvWeightParams p, const Parts parts) {
  constexpr int N = kTapsTogether, kFilters = last ? kRowThreads : 1;  // of a block
  DLOPS_SHARED(Sums<N>, scratch, [32]);
  const Strides in = strides_of(last, p.channels, p.in_pixels()),
                out = strides_of(last, p.filters, p.out_pixels());
  const int taps = static_cast<int>(p.taps());
  const int64_t blocks = tiles(p.filters, kFilters), pieces = tiles(taps, N), all = p.batch * p.out_pixels();
  for (int64_t task = blockIdx.x; task < blocks * pieces * parts.count; task += gridDim.x) {
    const int64_t filter = task % blocks * kFilters + (last ? threadIdx.x : 0),
                  channel = filter / p.group_filters();
    const int first = static_cast<int>(task / blocks % pieces) * N;
    const int64_t part = task / blocks / pieces;
    const Span span = span_of(parts, part, all);
    Sums<N> sums{};
    for (int64_t m = span.begin + (last ? 0 : threadIdx.x); m < span.end; m += last ? 1 : blockDim.x) {
      if (filter >= p.filters) break;
      const int64_t sample = m / p.out_pixels();
      const int at = static_cast<int>(m - sample * p.out_pixels());
      const Pixel q = pixel_of(at, p.out);
      const T* x = static_cast<const T*>(p.x) + sample * in.sample + channel * in.channel;
      const float dy = static_cast<float>(
          static_cast<const T*>(p.dy)[sample * out.sample + filter * out.channel + at * out.pixel]);
#pragma unroll
      for (int k = 0; k < N; k++) {
        if (first + k >= taps) continue;
        const int i = pixel_seen_by(p, q, pixel_of(first + k, p.kernel));
        if (i >= 0) sums.v[k] = fmaf(static_cast<float>(x[i * in.pixel]), dy, sums.v[k]);
      }
    }
    if constexpr (!last) sums = block_reduce(sums, scratch);
    float* to = p.workspace + (part * p.filters + filter) * taps + first;
    if (last ? filter < p.filters : threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < N; k++)
        if (first + k < taps) to[k] = sums.v[k];
    }
  }
}

// ---- the host's side: launch_depthwise_weight_<name>.cu ----

int depthwise_weight_columns(const ConvWeightParams&, const Parts&, cudaStream_t);
int depthwise_weight_rows(const ConvWeightParams&, const Parts&, cudaStream_t);
int depthwise_weight_last(const ConvWeightParams&, const Parts&, cudaStream_t);

}  // namespace dlops::conv
