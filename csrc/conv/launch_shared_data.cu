#include "launch_parts.h"
#include "shared.cuh"

namespace dlops::conv {

const char* shared_data_refuses(const ConvProblem& p) { return refuses_counts(p); }
int64_t shared_data_workspace(const ConvProblem& p) { return shared_workspace(p, true); }
int shared_data(const ConvDataParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return run_shared<std::remove_pointer_t<decltype(t)>, true>(p, p.dy, p.dx,
                                                                static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops::conv
