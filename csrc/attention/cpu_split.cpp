// The split kernel of every level, in float32 arithmetic. See split.h.
#include <type_traits>

#include "cpu_parts.h"
#include "split.h"

namespace dlops::DLOPS_PARTS {

void split(const AttentionForwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { split_keys<Widened<std::remove_pointer_t<decltype(t)>>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
