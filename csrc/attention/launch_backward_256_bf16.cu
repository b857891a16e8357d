#include "launch_backward.h"

namespace dlops::attention {

int backward_256_bf16(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                      dlops_stream stream) {
  return backward_tensor_cores<__nv_bfloat16, 256, 192>(p, rows, access, stream);
}

}  // namespace dlops::attention
