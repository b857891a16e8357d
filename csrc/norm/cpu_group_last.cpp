#include "cpu_parts.h"
#include "group_last.h"

namespace dlops::DLOPS_PARTS {

void group_pixels(const GroupNormParams& p) {
  with_dtype_and(p.dtype, p.silu,
                 [&](auto* t, auto silu) { group_last_forward<Element<decltype(t)>, silu>(p); });
}
void group_pixels_backward(const GroupNormBackwardParams& p) {
  with_dtype_and(p.dtype, p.silu,
                 [&](auto* t, auto silu) { group_last_backward<Element<decltype(t)>, silu>(p); });
}

}  // namespace dlops::DLOPS_PARTS
