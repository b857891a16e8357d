#include "launch_pipelined.h"

namespace dlops::attention {

int pipelined_broad_f16(const AttentionForwardParams& p, dlops_stream stream) {
  return pipelined_broad<__half>(p, stream);
}

}  // namespace dlops::attention
