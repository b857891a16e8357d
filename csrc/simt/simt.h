// Included by cuda/launch.h wherever the compiler is not nvcc: CUDA C++ as a library, so that a kernel compiles unchanged
// with g++ and runs on the CPU. README.md of this folder describes the machine.
#pragma once
#include <tuple>
#include <utility>

#include "builtins.h"
#include "intrinsics.h"
#include "tensor.h"

// ---- the language ----

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (::dlops::simt::here->thread_index)
#define blockIdx (::dlops::simt::here->block_index)
#define blockDim (*::dlops::simt::here->block_size)
#define gridDim (*::dlops::simt::here->grid_size)

#define DLOPS_DEVICE inline __attribute__((always_inline))
#define DLOPS_SHARED(T, name, dims)                           \
  static const char dlops_tag_##name = 0;                     \
  using dlops_type_##name = T dims;                           \
  dlops_type_##name& name = *static_cast<dlops_type_##name*>( \
      ::dlops::simt::static_shared(&dlops_tag_##name, #name, sizeof(dlops_type_##name), alignof(T)))
#define DLOPS_DYNAMIC_SHARED(T, name, alignment) \
  T* name = static_cast<T*>(::dlops::simt::dynamic_shared(#name, alignment))

// Records a value for dlops.study.emulate(..., trace=(block, thread)).
#define SIMT_TRACE(name, value) ::dlops::simt::trace(name, static_cast<double>(value))

// ---- the host's side ----

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;

namespace dlops {

struct Launch {
  dim3 grid, block;
  size_t smem = 0;  // dynamic shared memory, bytes
  cudaStream_t stream = nullptr;
  dim3 cluster = dim3(1, 1, 1);
  bool cooperative = false;
};

// Runs the grid to its end. Arguments convert to the kernel's parameter types. Throws simt::Error.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& l, A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> parameters;
  } call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  simt::run({l.grid, l.block, l.cluster, l.smem, l.cooperative, reinterpret_cast<void*>(kernel), &call,
             sizeof call},
            [](const void* c) {
              std::apply(static_cast<const Call*>(c)->kernel, static_cast<const Call*>(c)->parameters);
            });
  return cudaSuccess;
}

}  // namespace dlops
