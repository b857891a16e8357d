#include "launch_backward.h"

namespace dlops::attention {

int backward_64_f16(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                    dlops_stream stream) {
  return backward_tensor_cores<__half, 64, 32>(p, rows, access, stream);
}

}  // namespace dlops::attention
