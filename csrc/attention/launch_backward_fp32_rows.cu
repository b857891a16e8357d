#include "launch_backward_fp32.h"

namespace dlops::attention {

int backward_fp32_rows(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  return backward_fp32<Own::rows>(p, rows, stream);
}

}  // namespace dlops::attention
