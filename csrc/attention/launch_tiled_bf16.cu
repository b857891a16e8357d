#include "launch_tiled.h"

namespace dlops::attention {

int tiled_bf16(const AttentionForwardParams& p, dlops_stream stream) {
  return tiled<__nv_bfloat16>(p, stream);
}

}  // namespace dlops::attention
