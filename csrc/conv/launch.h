// The family's CUDA kernels, for ops.cpp: no CUDA header needed. Each `run` launches its kernels on `stream` of the current
// device and returns 0 or the error that cuda_error_string names. All pointers are device pointers.
//
// A workspace size is in float32 elements and does not depend on the device. How a sum is split depends on the shape of one
// sample only (in the weight pass on the batch as well), and every result is the same on every run.
#pragma once
#include "../catalogue.h"
#include "../cuda/launch_error.h"
#include "params.h"

namespace dlops {

// One algorithm for one pass. run null: there is none. workspace null: it needs none.
template <class Params>
struct ConvCudaKernel {
  const char* (*refuses)(
      const ConvProblem&);  // why it cannot take a problem, as the end of a sentence; null: it can
  int64_t (*workspace)(const ConvProblem&);
  int (*run)(const Params&, dlops_stream);
};

struct ConvCuda {
  ConvCudaKernel<ConvForwardParams> forward[kAlgorithms];
  ConvCudaKernel<ConvDataParams> data[kAlgorithms];
  ConvCudaKernel<ConvWeightParams> weight[kAlgorithms];
  const KernelInfo* kernels;
  int kernel_count;

  int64_t workspace(const ConvForwardParams& p) const { return floats(forward, p); }
  int64_t workspace(const ConvDataParams& p) const { return floats(data, p); }
  int64_t workspace(const ConvWeightParams& p) const { return floats(weight, p); }

  template <class Params>
  static int64_t floats(const ConvCudaKernel<Params> (&rungs)[kAlgorithms], const Params& p) {
    const auto& rung = rungs[static_cast<int>(p.algorithm)];
    return rung.workspace ? rung.workspace(p) : 0;
  }
};

extern const ConvCuda conv_cuda;

}  // namespace dlops
