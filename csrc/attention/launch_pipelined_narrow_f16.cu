#include "launch_pipelined.h"

namespace dlops::attention {

int pipelined_narrow_f16(const AttentionForwardParams& p, dlops_stream stream) {
  return pipelined_narrow<__half>(p, stream);
}

}  // namespace dlops::attention
