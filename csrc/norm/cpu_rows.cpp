#include "cpu_parts.h"
#include "rows.h"

namespace dlops::DLOPS_PARTS {

void rows(const RowNormParams& p) {
  with_dtype_and(p.dtype, p.rms, [&](auto* t, auto rms) { rows_forward<Element<decltype(t)>, rms>(p); });
}
void rows_backward(const RowNormBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { dlops::rows_backward<Element<decltype(t)>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
