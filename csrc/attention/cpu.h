// The table of the family's CPU kernels; one exists per instruction-set level.
#pragma once
#include "../api.h"
#include "../catalogue.h"
#include "params.h"

namespace dlops {

struct AttentionCpu {
  void (*naive)(const AttentionForwardParams&);
  void (*tiled)(const AttentionForwardParams&);
  void (*split)(const AttentionForwardParams&);  // few rows over many keys, no dropout
  void (*backward_naive)(const AttentionBackwardParams&);
  void (*backward)(const AttentionBackwardParams&);
  void (*rotary)(const RotaryParams&);
  const KernelInfo* kernels;
  int kernel_count;
};

extern const AttentionCpu attention_generic, attention_avx2, attention_avx512, attention_avx512bf16;
DLOPS_API const AttentionCpu& attention_cpu();  // the table of the level in use

}  // namespace dlops
