// The table of the family's CPU kernels; one exists per instruction-set level.
#pragma once
#include "../api.h"
#include "../catalogue.h"
#include "params.h"

namespace dlops {

// One algorithm for one pass. Null members: there is none (run), nothing is packed (the other two).
template <class Params>
struct ConvKernel {
  const char* (*refuses)(
      const ConvProblem&);  // why it cannot take a problem, as the end of a sentence; null: it can
  int64_t (*packed_floats)(
      const ConvProblem&);  // of `packed`; may depend on w's sizes, groups, stride, dilation and padding
  void (*pack)(const ConvProblem&, const void* w, float* packed);
  void (*run)(const Params&);
};

struct ConvCpu {
  ConvKernel<ConvForwardParams> forward[kAlgorithms];
  ConvKernel<ConvDataParams> data[kAlgorithms];
  ConvKernel<ConvWeightParams> weight[kAlgorithms];
  const KernelInfo* kernels;
  int kernel_count;
};

extern const ConvCpu conv_generic, conv_avx2, conv_avx512;
DLOPS_API const ConvCpu& conv_cpu();  // the table of the level in use

}  // namespace dlops
