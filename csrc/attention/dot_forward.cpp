// The tiled forward pass by bfloat16's dot product instruction; the kernel is in forward.h. Other types take the
// AVX-512 level's.
#include "cpu_parts.h"
#include "dot_products.h"
#include "forward.h"

namespace dlops::attention_avx512_parts {
void tiled(const AttentionForwardParams&);
}

namespace dlops::DLOPS_PARTS {

void tiled(const AttentionForwardParams& p) {
  p.dtype == Dtype::bf16 ? run_forward<DotProducts>(p) : attention_avx512_parts::tiled(p);
}

}  // namespace dlops::DLOPS_PARTS
