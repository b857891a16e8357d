// What the current device can do.
#pragma once
#include "../cuda/launch.h"
#include "params.h"

namespace dlops::attention {

// Whether mma_m16n8k16 exists (sm_80) and takes the type. The simt runner has all instructions.
inline bool has_tensor_cores(Dtype t) {
  if (t == Dtype::f32) return false;
#if defined(__CUDACC__)
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 8;
#else
  return true;
#endif
}

}  // namespace dlops::attention
