#include "launch_parts.h"
#include "shared.cuh"

namespace dlops::conv {

const char* shared_forward_refuses(const ConvProblem& p) { return refuses_counts(p); }
int64_t shared_forward_workspace(const ConvProblem& p) { return shared_workspace(p, false); }
int shared_forward(const ConvForwardParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return run_shared<std::remove_pointer_t<decltype(t)>, false>(p, p.x, p.y,
                                                                 static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops::conv
