// What the launchers of the implicit GEMM take.
#pragma once
#include "geometry.cuh"
#include "launch_parts.h"

namespace dlops::conv::implicit {

// Of the current device, where there is one. The simt runner has all instructions.
inline bool lacks_tensor_cores() {
#if defined(__CUDACC__)
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major < 8;
#else
  return false;
#endif
}

inline const char* refuses(const ConvProblem& p) {
  if (!p.channels_last) return "is for channels_last tensors";
  if (p.dtype == Dtype::f32) return "is for float16 and bfloat16";
  if (lacks_tensor_cores()) return "is for GPUs of compute capability 8.0 and later";
  if (p.batch >= 1 << 28) return "is for fewer than 2^28 samples";
  return refuses_counts(p);
}

template <class F>
int with_half(Dtype t, F f) {
  if (lacks_tensor_cores()) return cudaErrorInvalidValue;
  switch (t) {
    case Dtype::f32: break;
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

// One block per task. More than a grid has is a grid of 0, which no device takes: an error, not a part of the result.
inline dim3 grid_of(int64_t blocks) { return dim3(blocks > 0x7fffffff ? 0 : static_cast<unsigned>(blocks)); }

}  // namespace dlops::conv::implicit
