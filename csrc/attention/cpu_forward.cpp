// The tiled forward pass on the CPU, in float32 arithmetic; the kernel is in forward.h.
#include <type_traits>

#include "cpu_parts.h"
#include "forward.h"

namespace dlops::DLOPS_PARTS {

void tiled(const AttentionForwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { run_forward<FloatProducts<std::remove_pointer_t<decltype(t)>>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
