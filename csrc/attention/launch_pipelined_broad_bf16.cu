#include "launch_pipelined.h"

namespace dlops::attention {

int pipelined_broad_bf16(const AttentionForwardParams& p, dlops_stream stream) {
  return pipelined_broad<__nv_bfloat16>(p, stream);
}

}  // namespace dlops::attention
