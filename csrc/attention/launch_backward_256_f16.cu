#include "launch_backward.h"

namespace dlops::attention {

int backward_256_f16(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                     dlops_stream stream) {
  return backward_tensor_cores<__half, 256, 192>(p, rows, access, stream);
}

}  // namespace dlops::attention
