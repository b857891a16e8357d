#include "launch_implicit.h"

namespace dlops::conv {

const char* implicit_gemm_data_refuses(const ConvProblem& p) {
  return p.padding_mode == PaddingMode::zeros ? implicit::refuses(p) : "is for padding mode zeros";
}

int64_t implicit_gemm_data_workspace(const ConvProblem& p) {
  return implicit::arranged_floats(p.channels, p.taps(), p.group_filters());
}

int implicit_gemm_data(const ConvDataParams& p, dlops_stream stream) {
  return implicit::gather<true>(p, p.dy, p.dx, stream);
}

}  // namespace dlops::conv
