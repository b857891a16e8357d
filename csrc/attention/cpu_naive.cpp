// The naive rung on the CPU; the kernels are in naive_forward.h and naive_backward.h.
#include <type_traits>

#include "cpu_parts.h"
#include "naive_backward.h"
#include "naive_forward.h"

namespace dlops::DLOPS_PARTS {

void naive(const AttentionForwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { forward_naive<std::remove_pointer_t<decltype(t)>>(p); });
}
void backward_naive(const AttentionBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { backward_naive_of<std::remove_pointer_t<decltype(t)>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
