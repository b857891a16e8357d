// The family's CUDA kernels, for ops.cpp: no CUDA header needed. The same table as cpu.h's DiffusionCpu.
//
// Each function launches one kernel on `stream` of the current device and returns 0 or the error that
// cuda_error_string names. Nothing is launched for an empty tensor. All pointers are device pointers.
#pragma once
#include "../catalogue.h"
#include "../cuda/launch_error.h"
#include "params.h"

namespace dlops {

struct DiffusionCuda {
  int (*step)(const StepParams&, dlops_stream);
  int (*step_naive)(const StepParams&, dlops_stream);
  int (*step_reduce)(const StepReduceParams&, dlops_stream);  // fewer than 2^32 elements per sample
  int (*add_noise)(const AddNoiseParams&, dlops_stream);
  int (*randn)(const RandnParams&, dlops_stream);
  int (*randn_naive)(const RandnParams&, dlops_stream);
  const KernelInfo* kernels;
  int kernel_count;
};

extern const DiffusionCuda diffusion_cuda;

// In files of their own; use the table.
int step_reduce_cuda(const StepReduceParams&, dlops_stream);
int add_noise_cuda(const AddNoiseParams&, dlops_stream);
int randn_cuda(const RandnParams&, dlops_stream);
int randn_naive_cuda(const RandnParams&, dlops_stream);

}  // namespace dlops
