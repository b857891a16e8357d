// The fused forward pass for bfloat16 on CPUs with its dot product; other types are the AVX-512 level's.
#include "cpu_parts.h"
#include "dot_product.h"
#include "forward.h"

namespace dlops {

namespace lstm_avx512_parts {
int64_t packed_floats(const PackParams&);
void pack(const PackParams&);
void fused_forward(const RecurrenceParams&);
}  // namespace lstm_avx512_parts

namespace DLOPS_PARTS {

int64_t packed_floats(const PackParams& p) {
  if (p.dtype != Dtype::bf16) return lstm_avx512_parts::packed_floats(p);
  return DotProduct::packed_floats({p.gates, p.units, p.depth});
}

void pack(const PackParams& p) {
  if (p.dtype != Dtype::bf16) return lstm_avx512_parts::pack(p);
  const Panels w{p.gates, p.units, p.depth};
  DotProduct::pack(w, p.dtype, p.w, 0, w.groups(), p.packed);
}

void fused_forward(const RecurrenceParams& p) {
  p.dtype == Dtype::bf16 ? run_forward_of<DotProduct>(p) : lstm_avx512_parts::fused_forward(p);
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
