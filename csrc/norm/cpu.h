// The table of the family's CPU kernels; one exists per instruction-set level.
#pragma once
#include "../api.h"
#include "../catalogue.h"
#include "params.h"

namespace dlops {

struct NormCpu {
  void (*group_norm)(const GroupNormParams&);
  void (*group_norm_naive)(const GroupNormParams&);
  void (*group_norm_backward)(const GroupNormBackwardParams&);
  void (*group_norm_backward_naive)(const GroupNormBackwardParams&);
  void (*row_norm)(const RowNormParams&);
  void (*row_norm_naive)(const RowNormParams&);
  void (*row_norm_backward)(const RowNormBackwardParams&);
  void (*row_norm_backward_naive)(const RowNormBackwardParams&);
  const KernelInfo* kernels;
  int kernel_count;
};

extern const NormCpu norm_generic, norm_avx2, norm_avx512;
DLOPS_API const NormCpu& norm_cpu();  // the table of the level in use

}  // namespace dlops
