#include "launch_implicit.h"

namespace dlops::conv {

const char* implicit_gemm_forward_refuses(const ConvProblem& p) { return implicit::refuses(p); }

int64_t implicit_gemm_forward_workspace(const ConvProblem& p) {
  return implicit::arranged_floats(p.filters, p.taps(), p.group_channels());
}

int implicit_gemm_forward(const ConvForwardParams& p, dlops_stream stream) {
  return implicit::gather<false>(p, p.x, p.y, stream);
}

}  // namespace dlops::conv
