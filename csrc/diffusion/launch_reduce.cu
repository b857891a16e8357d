#include "reduce.cuh"

#include "launch.h"

namespace dlops {

int step_reduce_cuda(const StepReduceParams& p, dlops_stream stream) {
  if (p.samples * p.elements == 0) return cudaSuccess;
  if (p.elements >= int64_t{1} << 32) return cudaErrorInvalidValue;  // ranks are 32-bit
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool wide = wide_rows<T>(p.elements, p.sample, p.model, p.uncond);
    const dim3 grid(block_count(p.samples, 65536));
    return launch(diffusion::step_reduce<T>,
                  {grid, dim3(diffusion::kReduceThreads), 0, static_cast<cudaStream_t>(stream)}, p, wide);
  });
}

}  // namespace dlops
