#include "launch_tiled.h"

namespace dlops::attention {

int tiled_f16(const AttentionForwardParams& p, dlops_stream stream) { return tiled<__half>(p, stream); }

}  // namespace dlops::attention
