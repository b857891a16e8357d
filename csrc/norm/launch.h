// The family's CUDA kernels, for ops.cpp: no CUDA header needed. The same table as cpu.h's NormCpu, and the sizes of the
// workspaces that the caller allocates on the device (params.workspace).
//
// Each function launches its kernels on `stream` of the current device and returns 0 or the error that
// cuda_error_string names. Nothing is launched for an empty tensor. All pointers are device pointers.
//
// A workspace size is in float32 elements, may be 0 (null will do), serves the naive rung too, and does not depend on the
// device. How a sum is split depends on the shape of one sample only (for weight gradients, on the number of rows or
// samples as well), so results do not depend on the batch, and are the same on every run.
#pragma once
#include "../catalogue.h"
#include "../cuda/launch_error.h"
#include "params.h"

namespace dlops {

struct NormCuda {
  int (*group_norm)(const GroupNormParams&, dlops_stream);
  int (*group_norm_naive)(const GroupNormParams&, dlops_stream);
  int (*group_norm_backward)(const GroupNormBackwardParams&, dlops_stream);
  int (*group_norm_backward_naive)(const GroupNormBackwardParams&, dlops_stream);
  int (*row_norm)(const RowNormParams&, dlops_stream);
  int (*row_norm_naive)(const RowNormParams&, dlops_stream);
  int (*row_norm_backward)(const RowNormBackwardParams&, dlops_stream);
  int (*row_norm_backward_naive)(const RowNormBackwardParams&, dlops_stream);
  int64_t (*group_norm_workspace)(const GroupNormParams&);
  int64_t (*group_norm_backward_workspace)(const GroupNormBackwardParams&);
  int64_t (*row_norm_backward_workspace)(const RowNormBackwardParams&);
  const KernelInfo* kernels;
  int kernel_count;

  int64_t workspace(const GroupNormParams& p) const { return group_norm_workspace(p); }
  int64_t workspace(const GroupNormBackwardParams& p) const { return group_norm_backward_workspace(p); }
  int64_t workspace(const RowNormBackwardParams& p) const { return row_norm_backward_workspace(p); }
};

extern const NormCuda norm_cuda;

}  // namespace dlops
