// Depthwise, NCHW, any width and stride along x: a thread has 8 outputs along y, neighbouring threads lie along x. 7 + K numbers
// of a column serve 8 outputs, K products each: (7 + K) / 8 of the bytes of x go through the L1 cache per column of taps.
#pragma once
#include "depthwise.cuh"

namespace dlops::conv {

constexpr int kColumnOutputs = 8;
constexpr int kColumnChunk = 8;  // the K of columns that are taken in pieces

constexpr KernelInfo kDepthwiseColumns =
    DLOPS_CONV_CUDA_KERNEL("conv", "depthwise", "8 outputs along y", "conv_depthwise_columns", 0);
// Stride and dilation 1 along y. K: taps along y, or kColumnChunk of any number.
template <class T, int K>
__global__ void __launch_bounds__(kRowThreads, K == kColumnChunk ? 4 : 6)
    conv_depthwise_columns(const __grid_constant__ DepthwiseParams p) {
  const int64_t groups = tiles(p.out[1], kColumnOutputs),
                count = p.batch * p.filters * p.out[0] * groups * p.out[2];
  const int height = K < kColumnChunk ? K : static_cast<int>(p.kernel[1]),
            in_height = static_cast<int>(p.in[1]);
  const int width = static_cast<int>(p.kernel[2]), out_height = static_cast<int>(p.out[1]);
  for (int64_t task = flat_thread(); task < count; task += flat_threads()) {
    const int x = static_cast<int>(task % p.out[2]),
              z = static_cast<int>(task / p.out[2] / groups % p.out[0]);
    const int first = static_cast<int>(task / p.out[2] % groups) * kColumnOutputs;
    const int64_t plane = task / p.out[2] / groups / p.out[0], filter = plane % p.filters;
    float sum[kColumnOutputs] = {};
    for (int kz = 0; kz < p.kernel[0]; kz++)
      for (int kx = 0; kx < width; kx++) {
        const int iz = seen_by(p, 0, z, kz), ix = seen_by(p, 2, x, kx);
        if ((iz | ix) < 0) continue;
        const T* column =
            static_cast<const T*>(p.x) + (plane / p.group_filters() * p.in[0] + iz) * p.in[1] * p.in[2] + ix;
        const float* w = p.weights + (kz * height * width + kx) * p.filters + filter;
        for (int begin = 0; begin < height; begin += K) {
          float taps[K];
#pragma unroll
          for (int k = 0; k < K; k++)
            if (K < kColumnChunk || begin + k < height) taps[k] = w[(begin + k) * width * p.filters];
#pragma unroll
          for (int i = 0; i < kColumnOutputs + K - 1; i++) {
            const int iy =
                padded(first - static_cast<int>(p.padding[1]) + begin + i, in_height, p.padding_mode);
            const float v = iy >= 0 && iy < in_height ? static_cast<float>(column[iy * p.in[2]]) : 0.f;
#pragma unroll
            for (int k = 0; k < K; k++) {
              if (i - k < 0 || i - k >= kColumnOutputs || (K == kColumnChunk && begin + k >= height))
                continue;
              sum[i - k] = fmaf(v, taps[k], sum[i - k]);
            }
          }
        }
      }
    const int64_t at = ((plane * p.out[0] + z) * p.out[1] + first) * p.out[2] + x;
#pragma unroll 1
    for (int turn = 0; turn < kColumnOutputs; turn++) {  // a rotation: one copy of the code
      if (first + turn < out_height) finish<T>(p.epilogue, p.y, at + turn * p.out[2], filter, sum[0]);
#pragma unroll
      for (int i = 0; i + 1 < kColumnOutputs; i++) sum[i] = sum[i + 1];
    }
  }
}

}  // namespace dlops::conv
