// The family's CUDA kernels, for ops.cpp: no CUDA header needed. Each function launches its kernels on `stream` of the
// current device and returns 0 or the error that cuda_error_string names. All pointers are device pointers.
//
// A workspace size is in float32 elements, serves every rung of its pass, and does not depend on the device.
#pragma once
#include "../catalogue.h"
#include "../cuda/launch_error.h"
#include "params.h"

namespace dlops {

struct AttentionCuda {
  int (*naive)(const AttentionForwardParams&, dlops_stream);
  int (*online)(const AttentionForwardParams&, dlops_stream);
  int (*tiled)(const AttentionForwardParams&, dlops_stream);
  int (*pipelined)(const AttentionForwardParams&, dlops_stream);
  int (*split)(const AttentionForwardParams&, dlops_stream);
  int (*backward_naive)(const AttentionBackwardParams&, dlops_stream);
  int (*backward)(const AttentionBackwardParams&, dlops_stream);
  int (*rotary)(const RotaryParams&, dlops_stream);
  int64_t (*forward_workspace)(const AttentionForwardParams&);
  int64_t (*backward_workspace)(const AttentionBackwardParams&);
  const KernelInfo* kernels;
  int kernel_count;

  int64_t workspace(const AttentionForwardParams& p) const { return forward_workspace(p); }
  int64_t workspace(const AttentionBackwardParams& p) const { return backward_workspace(p); }
};

extern const AttentionCuda attention_cuda;

}  // namespace dlops
