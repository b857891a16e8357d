#include "launch.h"
#include "noise.cuh"

namespace dlops {

int add_noise_cuda(const AddNoiseParams& params, dlops_stream stream) {
  AddNoiseParams p = params;
  diffusion::flatten(p, p.rows, p.seeds);
  if (p.samples * p.elements == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool wide = wide_rows<T>(p.elements, p.sample, p.noise, p.out);
    return diffusion::launch_rows<T>(
        p, diffusion::kUnroll, wide ? diffusion::add_noise<T, true> : diffusion::add_noise<T, false>, stream);
  });
}

int randn_cuda(const RandnParams& p, dlops_stream stream) {
  if (p.samples * p.elements == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool wide = wide_rows<T>(p.elements, p.out);
    return diffusion::launch_rows<T>(p, 1, wide ? diffusion::randn<T, true> : diffusion::randn<T, false>,
                                     stream);
  });
}

int randn_naive_cuda(const RandnParams& p, dlops_stream stream) {
  return diffusion::launch_flat(
      p, stream, [](auto* t) { return diffusion::randn_naive<std::remove_pointer_t<decltype(t)>>; });
}

}  // namespace dlops
