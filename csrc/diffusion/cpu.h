// The table of the family's CPU kernels; one exists per instruction-set level.
#pragma once
#include "../api.h"
#include "../catalogue.h"
#include "params.h"

namespace dlops {

struct DiffusionCpu {
  void (*step)(const StepParams&);
  void (*step_naive)(const StepParams&);
  void (*step_reduce)(const StepReduceParams&);
  void (*add_noise)(const AddNoiseParams&);
  void (*randn)(const RandnParams&);
  void (*randn_naive)(const RandnParams&);
  const KernelInfo* kernels;
  int kernel_count;
};

extern const DiffusionCpu diffusion_generic, diffusion_avx2, diffusion_avx512;
DLOPS_API const DiffusionCpu& diffusion_cpu();  // the table of the level in use

}  // namespace dlops
