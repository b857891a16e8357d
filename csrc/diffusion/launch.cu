// Picks the instance of a kernel and launches it. nvcc compiles this file and launch_*.cu, and g++ against the simt
// runner. The launchers are apart so that they compile side by side.
#include "launch.h"

#include "cuda.cuh"
#include "noise.cuh"
#include "reduce.cuh"

namespace dlops {
namespace {

using namespace diffusion;

int step(const StepParams& params, dlops_stream stream) {
  StepParams p = params;
  flatten(p, p.rows, p.seeds || p.scale);
  if (p.samples * p.elements == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool one_step = !p.history[0] && !p.history[1] && !p.history[2] && !p.noise;
    if (!wide_rows<T>(p.elements, p.sample, p.model, p.uncond, p.history[0], p.history[1], p.history[2],
                      p.noise, p.prev, p.x0))
      return launch_rows<T>(p, kStepUnroll<kStreams>, step_fused<T, kStreams, false>, stream);
    if (one_step) return launch_rows<T>(p, kStepUnroll<kHistory>, step_fused<T, kHistory, true>, stream);
    return launch_rows<T>(p, kStepUnroll<kStreams>, step_fused<T, kStreams, true>, stream);
  });
}

int step_naive(const StepParams& p, dlops_stream stream) {
  return launch_flat(p, stream,
                     [](auto* t) { return diffusion::step_naive<std::remove_pointer_t<decltype(t)>>; });
}

constexpr KernelInfo kKernels[] = {kStep, kStepNaive, kStepReduce, kAddNoise, kRandn, kRandnNaive};

}  // namespace

const DiffusionCuda diffusion_cuda = {step,       step_naive,       step_reduce_cuda, add_noise_cuda,
                                      randn_cuda, randn_naive_cuda, kKernels,         6};

}  // namespace dlops
