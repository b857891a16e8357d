// The depthwise weight gradient, NCHW, 1-D: K sums per thread. See depthwise_weight.cuh.
#pragma once
#include "depthwise_weight.cuh"

namespace dlops::conv {

constexpr KernelInfo kDepthwiseWeightRows =
    DLOPS_CONV_CUDA_KERNEL("conv_weight", "depthwise", "1 filter, K taps", "conv_depthwise_weight_rows", 0);
// One tap along z and y. wide: rows of dy are whole chunks, as those of x are.
template <class T, int K, int lead>
__global__ void __launch_bounds__(kRowThreads, 4)
    conv_depthwise_weight_rows(const __grid_constant__ ConvWeightParams p, const Parts parts,
                               const bool wide) {
  constexpr int V = kVec<T>;
  static_assert(lead <= V && K - 1 - lead <= V);
  DLOPS_SHARED(Sums<K>, scratch, [32]);
  const int64_t chunks = tiles(p.out[2], V), in_chunks = p.in[2] / V,
                all = p.batch * p.out[0] * p.out[1] * chunks;
  for (int64_t task = blockIdx.x; task < p.filters * parts.count; task += gridDim.x) {
    const int64_t filter = task % p.filters, channel = filter / p.group_filters(), part = task / p.filters;
    const Span span = span_of(parts, part, all);
    Sums<K> sums{};
    for (int64_t u = span.begin + threadIdx.x; u < span.end; u += blockDim.x) {
      const int64_t chunk = u % chunks, row = u / chunks, sample = row / p.out[1] / p.out[0];
      const int y = static_cast<int>(row % p.out[1]), z = static_cast<int>(row / p.out[1] % p.out[0]);
      const int iz = seen_by(p, 0, z, 0), iy = seen_by(p, 1, y, 0);
      if ((iz | iy) < 0) continue;
      const T* dy = static_cast<const T*>(p.dy) +
                    (((sample * p.filters + filter) * p.out[0] + z) * p.out[1] + y) * p.out[2] + chunk * V;
      const uint4* line = reinterpret_cast<const uint4*>(
          static_cast<const T*>(p.x) +
          (((sample * p.channels + channel) * p.in[0] + iz) * p.in[1] + iy) * p.in[2]);
      float window[3][V], held[V];
      unpack<T>(load(dy, p.out[2] - chunk * V, wide), held);
#pragma unroll
      for (int c = 0; c < 3; c++) {
        const int64_t at = chunk + c - 1;
        unpack<T>(at >= 0 && at < in_chunks ? line[at] : make_uint4(0, 0, 0, 0), window[c]);
      }
#pragma unroll
      for (int k = 0; k < K; k++)
#pragma unroll
        for (int j = 0; j < V; j++)
          sums.v[k] = fmaf(window[(V + j + k - lead) / V][(V + j + k - lead) % V], held[j], sums.v[k]);
    }
    sums = block_reduce(sums, scratch);
    float* to = p.workspace + (part * p.filters + filter) * K;
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < K; i++) to[i] = sums.v[i];
    }
  }
}

}  // namespace dlops::conv
