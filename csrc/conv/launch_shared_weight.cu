#include "launch_parts.h"
#include "shared_weight.cuh"

namespace dlops::conv {

const char* shared_weight_refuses(const ConvProblem& p) { return refuses_counts(p); }
int64_t shared_weight_workspace(const ConvProblem& p) {
  return shared_weight_parts(p).count * p.filters * p.group_channels() * p.taps();
}
int shared_weight(const ConvWeightParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return run_shared_weight<std::remove_pointer_t<decltype(t)>>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops::conv
