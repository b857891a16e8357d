// The family's CUDA kernels, for ops.cpp: no CUDA header needed. Each function launches its kernels on `stream` of the current
// device and returns 0 or the error that cuda_error_string names. All pointers are device pointers.
#pragma once
#include "../catalogue.h"
#include "../cuda/launch_error.h"
#include "params.h"

namespace dlops {

// One rung. refuses: as in cpu.h, on the current device. Workspaces are in float32 elements, may be 0, and start undefined.
struct RecurrenceCudaKernel {
  const char* (*refuses)(const RecurrenceProblem&);
  int64_t (*forward_workspace)(const RecurrenceParams&);
  int (*forward)(const RecurrenceParams&, dlops_stream);
  int64_t (*backward_workspace)(const RecurrenceBackwardParams&);
  int (*backward)(const RecurrenceBackwardParams&, dlops_stream);
};

struct LstmCuda {
  RecurrenceCudaKernel rungs[kRungs];
  int (*gates)(const GatesParams&, dlops_stream);
  int (*gates_backward)(const GatesBackwardParams&, dlops_stream);
  int (*before)(const RecurrenceBackwardParams&, dlops_stream);  // h_before alone
  const KernelInfo* kernels;
  int kernel_count;

  int64_t workspace(const RecurrenceParams& p) const {
    return rungs[static_cast<int>(p.rung)].forward_workspace(p);
  }
  int64_t workspace(const RecurrenceBackwardParams& p) const {
    return rungs[static_cast<int>(p.rung)].backward_workspace(p);
  }
};

extern const LstmCuda lstm_cuda;

}  // namespace dlops
