// Depthwise, NCHW: a thread has the outputs of 16-byte chunks of a row. The window of K taps reaches into the chunks before and
// after: three loads of 16 bytes serve a chunk's outputs, and two of them find what a neighbour brought to the L1 cache. For a
// 1-D causal convolution memory moves one chunk in and one out: the time of a copy.
#pragma once
#include "depthwise.cuh"

namespace dlops::conv {

constexpr int kTogether = 2;  // chunks of a thread at a time: 6 loads in flight

constexpr KernelInfo kDepthwiseRows =
    DLOPS_CONV_CUDA_KERNEL("conv", "depthwise", "2 x 16 bytes of a row", "conv_depthwise_rows", 0);
// Stride and dilation 1 along x; K taps along x, of which `lead` lie before the output's own place; rows of x are whole
// chunks. wide: so are those of y.
template <class T, int K, int lead>
__global__ void __launch_bounds__(kRowThreads, 8)
    conv_depthwise_rows(const __grid_constant__ DepthwiseParams p, const bool wide) {
  constexpr int V = kVec<T>;
  static_assert(lead <= V && K - 1 - lead <= V);
  const int64_t rows = p.batch * p.filters * p.out[0] * p.out[1], chunks = tiles(p.out[2], V);
  const int64_t in_chunks = p.in[2] / V;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const int y = static_cast<int>(row % p.out[1]), z = static_cast<int>(row / p.out[1] % p.out[0]);
    const int64_t plane = row / p.out[1] / p.out[0];  // of [N, O]: that of x has its sample and channel
    const int64_t filter = plane % p.filters, from = plane / p.group_filters();
    for (int64_t first = first_chunk(kTogether); first < chunks; first += chunk_step(kTogether)) {
      float sum[kTogether][V] = {};
      const float* w = p.weights + filter;
      for (int kz = 0; kz < p.kernel[0]; kz++)
        for (int ky = 0; ky < p.kernel[1]; ky++, w += K * p.filters) {
          const int iz = seen_by(p, 0, z, kz), iy = seen_by(p, 1, y, ky);
          if ((iz | iy) < 0) continue;
          const uint4* line = reinterpret_cast<const uint4*>(
              static_cast<const T*>(p.x) + ((from * p.in[0] + iz) * p.in[1] + iy) * p.in[2]);
          float taps[K];
#pragma unroll
          for (int k = 0; k < K; k++) taps[k] = w[k * p.filters];
          uint4 chunk[kTogether][3];  // before, its own, after
#pragma unroll
          for (int u = 0; u < kTogether; u++)
#pragma unroll
            for (int c = 0; c < 3; c++) {
              const int64_t at = first + u * static_cast<int>(blockDim.x) + c - 1;
              const bool needed = c == 0 ? lead > 0 : c == 1 || K - 1 - lead > 0;
              chunk[u][c] = needed && at >= 0 && at < in_chunks ? line[at] : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
          for (int u = 0; u < kTogether; u++) {
            float window[3][V];
#pragma unroll
            for (int c = 0; c < 3; c++) unpack<T>(chunk[u][c], window[c]);
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
              for (int j = 0; j < V; j++)
                sum[u][j] = fmaf(window[(V + j + k - lead) / V][(V + j + k - lead) % V], taps[k], sum[u][j]);
          }
        }
#pragma unroll
      for (int u = 0; u < kTogether; u++) {
        const int64_t at = (first + u * static_cast<int>(blockDim.x)) * V;
        if (at < p.out[2])
          finish_run<T>(p.epilogue, p.y, row * p.out[2] + at, filter, p.out[2] - at, wide, sum[u]);
      }
    }
  }
}

}  // namespace dlops::conv
