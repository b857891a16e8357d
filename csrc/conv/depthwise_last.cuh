// Depthwise, channels_last, stride and dilation 1 along x. A thread has 4 channels (16 bytes of float32, 8 of the 16-bit types)
// of 8 outputs along x. Per row of taps it loads 8 + K - 1 pixels for 8 K products each: through the L1 cache go
// (7 + K) / 8 times the bytes per row of taps, and K rows of them.
#pragma once
#include "depthwise.cuh"

namespace dlops::conv {

constexpr int kOutputs = 8;
constexpr int kTapChunk = 8;  // the K of rows that are taken in pieces

constexpr KernelInfo kDepthwiseLast =
    DLOPS_CONV_CUDA_KERNEL("conv", "depthwise", "4 channels x 8 outputs along x", "conv_depthwise_last", 0);
// K: taps along x, or kTapChunk of any number.
template <class T, int K>
__global__ void __launch_bounds__(kRowThreads)
    conv_depthwise_last(const __grid_constant__ DepthwiseParams p) {
  const int64_t quads = p.channels / 4, groups = tiles(p.out[2], kOutputs);
  const int64_t count = p.batch * p.out[0] * p.out[1] * groups * quads;
  const int width = K < kTapChunk ? K : static_cast<int>(p.kernel[2]), in_width = static_cast<int>(p.in[2]);
  for (int64_t task = flat_thread(); task < count; task += flat_threads()) {
    const int64_t channel = task % quads * 4, row = task / quads / groups;  // of [N, D, H] of y
    const int first = static_cast<int>(task / quads % groups) * kOutputs,
              from = first - static_cast<int>(p.padding[2]);
    const int y = static_cast<int>(row % p.out[1]), z = static_cast<int>(row / p.out[1] % p.out[0]);
    const int64_t sample = row / p.out[1] / p.out[0];
    float sum[kOutputs][4] = {};
    const float* w = p.weights + channel;
    for (int kz = 0; kz < p.kernel[0]; kz++)
      for (int ky = 0; ky < p.kernel[1]; ky++, w += width * p.channels) {
        const int iz = seen_by(p, 0, z, kz), iy = seen_by(p, 1, y, ky);
        if ((iz | iy) < 0) continue;
        const T* line = static_cast<const T*>(p.x) +
                        ((sample * p.in[0] + iz) * p.in[1] + iy) * p.in[2] * p.channels + channel;
        for (int begin = 0; begin < width; begin += K) {
          float taps[K][4];
#pragma unroll
          for (int k = 0; k < K; k++)
            if (K < kTapChunk || begin + k < width) load_quad(w + (begin + k) * p.channels, taps[k]);
#pragma unroll
          for (int i = 0; i < kOutputs + K - 1; i++) {
            const int ix = padded(from + begin + i, in_width, p.padding_mode);
            float v[4] = {};
            if (ix >= 0 && ix < in_width) load_quad(line + ix * p.channels, v);
#pragma unroll
            for (int k = 0; k < K; k++) {
              if (i - k < 0 || i - k >= kOutputs || (K == kTapChunk && begin + k >= width)) continue;
#pragma unroll
              for (int j = 0; j < 4; j++) sum[i - k][j] = fmaf(v[j], taps[k][j], sum[i - k][j]);
            }
          }
        }
      }
    finish_quads<T>(p.epilogue, p.y, (row * p.out[2] + first) * p.channels + channel, p.channels, channel,
                    static_cast<int>(p.out[2]) - first, sum);
  }
}

template <class T, int K>
int run_depthwise_last(const DepthwiseParams& p, cudaStream_t stream) {
  const int64_t count = p.batch * p.out[0] * p.out[1] * ceil_div(p.out[2], kOutputs) * (p.channels / 4);
  return launch(conv_depthwise_last<T, K>, {flat_grid(count), dim3(kRowThreads), 0, stream}, p);
}

}  // namespace dlops::conv
