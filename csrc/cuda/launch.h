// One way to launch a kernel, in place of <<<>>>, and one spelling of what CUDA adds to C++. Kernels that use nothing
// else compile unchanged with nvcc and, as plain C++, against the simt runner.
#pragma once

#if !defined(__CUDACC__)
#include "../simt/simt.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#define DLOPS_DEVICE __device__ __forceinline__
// In the simt runner: records a value of the thread that dlops.study.emulate(..., trace=) follows.
#define SIMT_TRACE(name, value)
// DLOPS_SHARED(float, partial, [32]);
#define DLOPS_SHARED(T, name, dims) __shared__ T name dims
// DLOPS_DYNAMIC_SHARED(float, tile, 16); its size is Launch::smem. The alignment is an argument, and part of the
// symbol's name, because one over-aligned declaration rounds up the static shared memory of every kernel in the file.
#define DLOPS_DYNAMIC_SHARED(T, name, alignment) \
  extern __shared__ __align__(alignment)         \
  unsigned char dlops_shared_##alignment[];      \
  T* name = reinterpret_cast<T*>(dlops_shared_##alignment)

namespace dlops {

struct Launch {
  dim3 grid, block;
  size_t smem = 0;  // dynamic shared memory, bytes
  cudaStream_t stream = nullptr;
  dim3 cluster = dim3(1, 1, 1);
  bool cooperative = false;
};

// Arguments convert to the kernel's parameter types.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& l, A&&... args) {
  cudaError_t error = cudaSuccess;
  if (l.smem > 0)  // beyond 48 KB, less what the kernel has of static shared memory, it has to be asked for
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.smem));
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = l.grid;
    config.blockDim = l.block;
    config.dynamicSmemBytes = l.smem;
    config.stream = l.stream;
    config.attrs = attributes;
    if (l.cluster.x * l.cluster.y * l.cluster.z > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = l.cluster.x;
      attributes[config.numAttrs].val.clusterDim.y = l.cluster.y;
      attributes[config.numAttrs++].val.clusterDim.z = l.cluster.z;
    }
    if (l.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    error = cudaLaunchKernelEx(&config, kernel, P(std::forward<A>(args))...);
  }
  if (error != cudaSuccess) cudaGetLastError();  // it is reported here: leave none behind for the next caller
  return error;
}

}  // namespace dlops
#endif
