// The depthwise weight gradient, channels_last: K sums of 4 channels per thread. See depthwise_weight.cuh.
#pragma once
#include "depthwise_weight.cuh"

namespace dlops::conv {

constexpr int kLastChunk = 8;  // the K of rows that are taken in pieces

constexpr KernelInfo kDepthwiseWeightLast =
    DLOPS_CONV_CUDA_KERNEL("conv_weight", "depthwise", "32 filters, K taps", "conv_depthwise_weight_last", 0);
// Dilation 1 along x too. K: taps along x, or kLastChunk of any number.
template <class T, int K>
__global__ void __launch_bounds__(kRowThreads, 3)
    conv_depthwise_weight_last(const __grid_constant__ ConvWeightParams p, const Parts parts) {
  DLOPS_SHARED(float, scratch, [kLastLanes * kLastQuads * 4 * K]);  // [lanes, K, 32 channels]
  const int thread = static_cast<int>(threadIdx.x), quad = thread % kLastQuads, lane = thread / kLastQuads;
  const int width = static_cast<int>(p.kernel[2]), out_width = static_cast<int>(p.out[2]),
            in_width = static_cast<int>(p.in[2]);
  const int64_t groups = tiles(p.out[2], kStrip), all = p.batch * p.out[0] * p.out[1] * groups;
  const int64_t quad_tiles = tiles(p.channels, 4 * kLastQuads), pieces = tiles(width, K);
  const int64_t rows = p.kernel[0] * p.kernel[1], elements = p.channels * rows * width;
  for (int64_t task = blockIdx.x; task < quad_tiles * rows * pieces * parts.count; task += gridDim.x) {
    const int64_t first_channel = task % quad_tiles * 4 * kLastQuads, channel = first_channel + 4 * quad;
    const int64_t row = task / quad_tiles % rows, part = task / quad_tiles / rows / pieces;  // of taps
    const int begin = static_cast<int>(task / quad_tiles / rows % pieces) * K;
    const int kz = static_cast<int>(row / p.kernel[1]), ky = static_cast<int>(row % p.kernel[1]);
    const Span span = span_of(parts, part, all);
    float sums[K][4] = {};
    for (int64_t u = span.begin + lane; u < span.end && channel < p.channels; u += kLastLanes) {
      const int first = static_cast<int>(u % groups) * kStrip, y = static_cast<int>(u / groups % p.out[1]);
      const int z = static_cast<int>(u / groups / p.out[1] % p.out[0]);
      const int iz = seen_by(p, 0, z, kz), iy = seen_by(p, 1, y, ky);
      if ((iz | iy) < 0) continue;
      const int64_t sample = u / groups / p.out[1] / p.out[0];
      const T* dy = static_cast<const T*>(p.dy) + (u / groups * p.out[2] + first) * p.channels + channel;
      const T* line = static_cast<const T*>(p.x) +
                      ((sample * p.in[0] + iz) * p.in[1] + iy) * p.in[2] * p.channels + channel;
      float held[kStrip][4] = {};
#pragma unroll
      for (int i = 0; i < kStrip; i++)
        if (first + i < out_width) load_quad(dy + i * p.channels, held[i]);
#pragma unroll
      for (int i = 0; i < kStrip + K - 1; i++) {
        const int ix = first - static_cast<int>(p.padding[2]) + begin + i;
        float v[4] = {};
        if (static_cast<unsigned>(ix) < static_cast<unsigned>(in_width)) load_quad(line + ix * p.channels, v);
#pragma unroll
        for (int k = 0; k < K; k++) {
          if (i - k < 0 || i - k >= kStrip) continue;
#pragma unroll
          for (int j = 0; j < 4; j++) sums[k][j] = fmaf(v[j], held[i - k][j], sums[k][j]);
        }
      }
    }
    __syncthreads();  // the last task's sums are read
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int j = 0; j < 4; j++) scratch[(lane * K + k) * 4 * kLastQuads + 4 * quad + j] = sums[k][j];
    __syncthreads();  // the sums are there
    for (int e = thread; e < K * 4 * kLastQuads; e += kRowThreads) {
      const int k = e / (4 * kLastQuads), c = e % (4 * kLastQuads);
      float sum = 0.f;
      for (int l = 0; l < kLastLanes; l++) sum += scratch[(l * K + k) * 4 * kLastQuads + c];
      if (first_channel + c < p.channels && begin + k < width)
        p.workspace[part * elements + ((first_channel + c) * rows + row) * width + begin + k] = sum;
    }
  }
}

}  // namespace dlops::conv
