// The split kernel of the level that has the bfloat16 dot product; the other types run the AVX-512 level's.
#include "cpu_parts.h"
#include "split.h"
#include "split_dot.h"

namespace dlops {

namespace attention_avx512_parts {
void split(const AttentionForwardParams&);
}

namespace DLOPS_PARTS {

void split(const AttentionForwardParams& p) {
  if (p.dtype == Dtype::bf16) return split_keys<Dot>(p);
  attention_avx512_parts::split(p);
}

}  // namespace DLOPS_PARTS

}  // namespace dlops
