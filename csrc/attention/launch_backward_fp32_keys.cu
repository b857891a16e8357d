#include "launch_backward_fp32.h"

namespace dlops::attention {

int backward_fp32_keys(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  return backward_fp32<Own::keys>(p, rows, stream);
}

}  // namespace dlops::attention
