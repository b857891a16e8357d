// The catalogue of kernels behind dlops.kernels(): what exists, where its source is, for which devices and types.
//
// A kernel describes itself by a constexpr KernelInfo directly above its definition, so that __LINE__ points there.
// Rows are plain data: a table compiled for AVX-512 must not run code when the library loads on an older CPU.
// Registers, static shared memory and spills come from ptxas (kernel_resources.json), joined by `name`.
#pragma once
#include <vector>

#include "api.h"

namespace dlops {

struct KernelInfo {
  const char* op;             // the dispatcher op it serves: "diffusion_step"
  const char* family;         // its folder: "diffusion"
  const char* variant;        // the rung: "naive", "fused"
  const char* device;         // "cpu" or "cuda"
  const char* architectures;  // "avx2", or "sm_75 sm_80 sm_90a"
  const char* dtypes;         // "f32 f16 bf16"
  const char* tile;           // what one block or one chunk takes: "4 x lanes elements"
  const char* name;           // the function
  const char* file;
  int line;
  int dynamic_shared;  // bytes, at the default tile; CUDA only
};

void add_kernels(const KernelInfo* first, int count);
DLOPS_API const std::vector<KernelInfo>& kernels();

}  // namespace dlops

#if defined(__AVX512BF16__)
#define DLOPS_ISA_NAME "avx512bf16"
#elif defined(__AVX512F__)
#define DLOPS_ISA_NAME "avx512"
#elif defined(__AVX2__)
#define DLOPS_ISA_NAME "avx2"
#else
#define DLOPS_ISA_NAME "generic"
#endif

// constexpr KernelInfo kStep = DLOPS_CPU_KERNEL("diffusion_step", "diffusion", "fused", "f32 f16 bf16", "tile", "step");
#define DLOPS_CPU_KERNEL(op, family, variant, dtypes, tile, name) \
  {op, family, variant, "cpu", DLOPS_ISA_NAME, dtypes, tile, name, __FILE__, __LINE__, 0}
#define DLOPS_CUDA_KERNEL(op, family, variant, architectures, dtypes, tile, name, dynamic_shared) \
  {op, family, variant, "cuda", architectures, dtypes, tile, name, __FILE__, __LINE__, dynamic_shared}
