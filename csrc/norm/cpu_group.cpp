#include "cpu_parts.h"
#include "group.h"

namespace dlops::DLOPS_PARTS {

void group_planes(const GroupNormParams& p) {
  with_dtype_and(p.dtype, p.silu, [&](auto* t, auto silu) { group_forward<Element<decltype(t)>, silu>(p); });
}
void group_planes_backward(const GroupNormBackwardParams& p) {
  with_dtype_and(p.dtype, p.silu, [&](auto* t, auto silu) { group_backward<Element<decltype(t)>, silu>(p); });
}

}  // namespace dlops::DLOPS_PARTS
