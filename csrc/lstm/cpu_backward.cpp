// The backward pass of whole sequences.
#include <type_traits>

#include "backward.h"
#include "cpu_parts.h"

namespace dlops::DLOPS_PARTS {

void fused_backward(const RecurrenceBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { run_backward<std::remove_pointer_t<decltype(t)>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
