// Tensor copies between global and shared memory, done by the copy engine (sm_90): one thread asks for a box [.., rows,
// columns] of a tensor of 2, 3 or 4 dimensions. Coordinates and sizes are innermost first. PTX ISA 9.0, 5.5 and
// 9.7.9.25.5.
#pragma once
#include <cstdint>
#include <type_traits>

#include "ptx.h"
#include "swizzle.h"
#if defined(__CUDACC__)
#include <cuda.h>
#else
#include "../simt/tensor_map.h"
#endif

namespace dlops {

// Describes a tensor to the copy engine: sizes in elements, strides in bytes (dimension 0 is dense), the box in elements.
// Give it to a kernel by value, as `const __grid_constant__ CUtensorMap map`. cudaErrorInvalidValue where the driver
// refuses: base and strides are multiples of 16 bytes, strides < 2^40, sizes 1 .. 2^32, box sides 1 .. 256, and the
// box's rows a multiple of 16 bytes that fits the swizzle's span.
template <class T, int rank>
cudaError_t tensor_map(CUtensorMap* map, const T* base, const uint64_t (&sizes)[rank],
                       const uint64_t (&strides)[rank - 1], const uint32_t (&box)[rank], Swizzle swizzle) {
  static_assert(2 <= rank && rank <= 4);
#if defined(__CUDACC__)
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  // Asked of the loaded driver: the library links no libcuda, and loads where there is none.
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  constexpr CUtensorMapDataType type = std::is_same_v<T, float>    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                       : std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                   : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint32_t every[4] = {1, 1, 1, 1};
  cuuint64_t size[rank], stride[rank - 1];  // the driver's own integer types
  for (int i = 0; i < rank; i++) size[i] = sizes[i];
  for (int i = 0; i < rank - 1; i++) stride[i] = strides[i];
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, type, rank, const_cast<T*>(base), size, stride, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
      static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
#else
  return simt::encode_tensor_map(map, base, sizeof(T), rank, sizes, strides, box,
                                 static_cast<uint32_t>(swizzle))
             ? cudaSuccess
             : cudaErrorInvalidValue;
#endif
}

namespace ptx {

#define DLOPS_TMA_LOAD(rank, coordinates) \
  "cp.async.bulk.tensor." rank            \
  "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates "}], [%2];"
#define DLOPS_TMA_STORE(rank, coordinates) \
  "cp.async.bulk.tensor." rank "d.global.shared::cta.bulk_group [%0, {" coordinates "}], [%1];"

// Brings the box at those coordinates to shared memory (128-byte aligned; 1024 where swizzled) and its bytes to `bar`;
// what lies outside the tensor reads as zeros and counts. tma_load(tile, &map, bar, {x, y}). 9.7.9.25.5.2,
// cp.async.bulk.tensor.
template <int rank>
DLOPS_DEVICE void tma_load(void* dst, const CUtensorMap* map, uint64_t* bar,
                           const int (&at)[rank] DLOPS_LOC) {
  static_assert(2 <= rank && rank <= 4);
  if constexpr (rank == 2) {
    DLOPS_PTX(90,
              asm volatile(DLOPS_TMA_LOAD("2", "%3, %4")::"r"(shared_address(dst)), "l"(map),
                           "r"(shared_address(bar)), "r"(at[0]), "r"(at[1]) : "memory"),
              simt::tma_load(dst, map, bar, at, loc));
  } else if constexpr (rank == 3) {
    DLOPS_PTX(90,
              asm volatile(DLOPS_TMA_LOAD("3", "%3, %4, %5")::"r"(shared_address(dst)), "l"(map),
                           "r"(shared_address(bar)), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory"),
              simt::tma_load(dst, map, bar, at, loc));
  } else {
    DLOPS_PTX(
        90,
        asm volatile(DLOPS_TMA_LOAD("4", "%3, %4, %5, %6")::"r"(shared_address(dst)), "l"(map),
                     "r"(shared_address(bar)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory"),
        simt::tma_load(dst, map, bar, at, loc));
  }
}

// Takes the box from shared memory to those coordinates; nothing is written outside the tensor. The threads that wrote
// the box have each issued fence_proxy_async and met at a barrier.
template <int rank>
DLOPS_DEVICE void tma_store(const CUtensorMap* map, const void* src, const int (&at)[rank] DLOPS_LOC) {
  static_assert(2 <= rank && rank <= 4);
  if constexpr (rank == 2) {
    DLOPS_PTX(90,
              asm volatile(DLOPS_TMA_STORE("2", "%2, %3")::"l"(map), "r"(shared_address(src)), "r"(at[0]),
                           "r"(at[1]) : "memory"),
              simt::tma_store(map, src, at, loc));
  } else if constexpr (rank == 3) {
    DLOPS_PTX(90,
              asm volatile(DLOPS_TMA_STORE("3", "%2, %3, %4")::"l"(map), "r"(shared_address(src)), "r"(at[0]),
                           "r"(at[1]), "r"(at[2]) : "memory"),
              simt::tma_store(map, src, at, loc));
  } else {
    DLOPS_PTX(90,
              asm volatile(DLOPS_TMA_STORE("4", "%2, %3, %4, %5")::"l"(map), "r"(shared_address(src)),
                           "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory"),
              simt::tma_store(map, src, at, loc));
  }
}
#undef DLOPS_TMA_LOAD
#undef DLOPS_TMA_STORE

// Closes the thread's group of stores. 9.7.9.25.6.1, cp.async.bulk.commit_group.
DLOPS_DEVICE void tma_store_commit(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90, asm volatile("cp.async.bulk.commit_group;" :: : "memory"), simt::tma_store_commit(loc));
}
// Until all but the thread's youngest N groups are written; with _read, until their source may be reused. 9.7.9.25.6.2.
template <int N>
DLOPS_DEVICE void tma_store_wait(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90, asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"),
            simt::tma_store_wait(N, false, loc));
}
template <int N>
DLOPS_DEVICE void tma_store_wait_read(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90, asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"),
            simt::tma_store_wait(N, true, loc));
}

// Fetches the map itself ahead of its first use. 9.7.9.15, prefetch.
DLOPS_DEVICE void tma_prefetch(const CUtensorMap* map) {
  DLOPS_PTX(90, asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"), static_cast<void>(map));
}

}  // namespace ptx
}  // namespace dlops
