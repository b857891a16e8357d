// The depthwise weight gradient, NCHW: K x K sums per thread. See depthwise_weight.cuh.
#pragma once
#include "depthwise_weight.cuh"

namespace dlops::conv {

constexpr KernelInfo kDepthwiseWeightColumns = DLOPS_CONV_CUDA_KERNEL(
    "conv_weight", "depthwise", "1 filter, K x K taps", "conv_depthwise_weight_columns", 0);
template <class T, int K>
__global__ void __launch_bounds__(kRowThreads, 4)
    conv_depthwise_weight_columns(const __grid_constant__ ConvWeightParams p, const Parts parts) {
  DLOPS_SHARED(Sums<K * K>, scratch, [32]);
  const int out_height = static_cast<int>(p.out[1]), in_height = static_cast<int>(p.in[1]);
  const int64_t groups = tiles(p.out[1], kStrip), all = p.batch * p.out[0] * groups * p.out[2];
  const int64_t depth = p.kernel[0], elements = p.filters * depth * K * K;
  for (int64_t task = blockIdx.x; task < p.filters * depth * parts.count; task += gridDim.x) {
    const int64_t filter = task % p.filters, channel = filter / p.group_filters(),
                  part = task / p.filters / depth;
    const int kz = static_cast<int>(task / p.filters % depth);
    const Span span = span_of(parts, part, all);
    Sums<K * K> sums{};
    for (int64_t u = span.begin + threadIdx.x; u < span.end; u += blockDim.x) {
      const int x = static_cast<int>(u % p.out[2]), first = static_cast<int>(u / p.out[2] % groups) * kStrip;
      const int z = static_cast<int>(u / p.out[2] / groups % p.out[0]), iz = seen_by(p, 0, z, kz);
      if (iz < 0) continue;
      const int64_t sample = u / p.out[2] / groups / p.out[0];
      const T* dy = static_cast<const T*>(p.dy) +
                    (((sample * p.filters + filter) * p.out[0] + z) * p.out[1] + first) * p.out[2] + x;
      float held[kStrip];
#pragma unroll
      for (int i = 0; i < kStrip; i++)
        held[i] = first + i < out_height ? static_cast<float>(dy[i * p.out[2]]) : 0.f;
      const T* plane =
          static_cast<const T*>(p.x) + ((sample * p.channels + channel) * p.in[0] + iz) * p.in[1] * p.in[2];
#pragma unroll
      for (int kx = 0; kx < K; kx++) {
        const int ix = seen_by(p, 2, x, kx);
        if (ix < 0) continue;
#pragma unroll
        for (int i = 0; i < kStrip + K - 1; i++) {
          const int iy = first - static_cast<int>(p.padding[1]) + i;
          const bool inside = static_cast<unsigned>(iy) < static_cast<unsigned>(in_height);
          const float v = inside ? static_cast<float>(plane[iy * p.in[2] + ix]) : 0.f;
#pragma unroll
          for (int ky = 0; ky < K; ky++)
            if (i - ky >= 0 && i - ky < kStrip)
              sums.v[ky * K + kx] = fmaf(v, held[i - ky], sums.v[ky * K + kx]);
        }
      }
    }
    sums = block_reduce(sums, scratch);
    float* to = p.workspace + part * elements + (filter * depth + kz) * K * K;
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < K * K; i++) to[i] = sums.v[i];
    }
  }
}

template <int K>
int run_depthwise_weight_columns(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(conv_depthwise_weight_columns<std::remove_pointer_t<decltype(t)>, K>,
                  {task_grid(p.filters * p.kernel[0] * parts.count), dim3(kRowThreads), 0, stream}, p, parts);
  });
}
int depthwise_weight_columns_7(const ConvWeightParams&, const Parts&,
                               cudaStream_t);  // a file of its own: it compiles slowly

}  // namespace dlops::conv
