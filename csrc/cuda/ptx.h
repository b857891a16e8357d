// Instructions that CUDA C++ has no name for, one per function. mma.h has those of the tensor cores, tma.h the tensor
// copies, grid_sync.h the grid's barrier. Sections are those of the PTX ISA 9.0.
#pragma once
#include <cstdint>

#include "launch.h"
#if !defined(__CUDACC__)
#include "../simt/tensor.h"
#endif

// DLOPS_PTX(oldest architecture, instruction, twin): nvcc compiles the instruction, the simt runner's compiler the twin.
// On an older architecture it traps, so that a kernel for another device fails aloud.
#if !defined(__CUDACC__)
#define DLOPS_PTX(architecture, instruction, twin) twin
#else
#define DLOPS_PTX(architecture, instruction, twin) DLOPS_PTX_##architecture(instruction)
#define DLOPS_PTX_75(instruction) instruction
#if __CUDA_ARCH__ >= 800
#define DLOPS_PTX_80(instruction) instruction
#else
#define DLOPS_PTX_80(instruction) __trap()
#endif
#if __CUDA_ARCH__ >= 900
#define DLOPS_PTX_90(instruction) instruction
#else
#define DLOPS_PTX_90(instruction) __trap()
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DLOPS_PTX_90a(instruction) instruction
#else
#define DLOPS_PTX_90a(instruction) __trap()
#endif
// The trailing parameter by which the runner's messages name the kernel's line (simt/location.h).
#define DLOPS_LOC
#define DLOPS_LOC_ONLY
#endif

namespace dlops::ptx {

// 16 bytes that this kernel reads once: they go to registers and take no line of the L1 cache. Not .nc: `out` may be
// the input's own memory. 9.7.9.8, ld.
DLOPS_DEVICE uint4 load_once(const uint4* p) {
  uint4 v;
  DLOPS_PTX(75,
            asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y),
                         "=r"(v.z), "=r"(v.w) : "l"(p) : "memory"),
            v = *p);
  return v;
}

// The 32-bit address within the block's shared memory that instructions take. 9.7.9.20, cvta.
DLOPS_DEVICE uint32_t shared_address(const void* p DLOPS_LOC) {
  uint32_t address;
  DLOPS_PTX(75, address = static_cast<uint32_t>(__cvta_generic_to_shared(p)),
            address = simt::shared_address(p, loc));
  return address;
}

// ---- copies from global to shared memory that the thread does not wait for (sm_80) ----

// 4, 8 or 16 bytes; zeros where !valid, and then src is not read. 16 bytes bypass L1. 9.7.9.25.3.1, cp.async.
template <int bytes>
DLOPS_DEVICE void cp_async(void* dst, const void* src, bool valid DLOPS_LOC) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if constexpr (bytes == 16) {
    DLOPS_PTX(80,
              asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)),
                           "l"(src), "r"(valid ? 16 : 0) : "memory"),
              simt::cp_async(dst, src, 16, valid ? 16 : 0, loc));
  } else {
    DLOPS_PTX(80,
              asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(dst)),
                           "l"(src), "r"(valid ? bytes : 0), "n"(bytes) : "memory"),
              simt::cp_async(dst, src, bytes, valid ? bytes : 0, loc));
  }
}
// Closes the thread's group of copies. 9.7.9.25.3.2.
DLOPS_DEVICE void cp_async_commit() {
  DLOPS_PTX(80, asm volatile("cp.async.commit_group;" :: : "memory"), simt::cp_async_commit());
}
// Until all but the thread's youngest N groups have landed; other threads see them after a barrier. 9.7.9.25.3.3.
template <int N>
DLOPS_DEVICE void cp_async_wait(DLOPS_LOC_ONLY) {
  DLOPS_PTX(80, asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"), simt::cp_async_wait(N, loc));
}

// ---- named barriers: `threads` of the block, whole warps, meet at barrier 1..15 (0 is __syncthreads). 9.7.13.1, bar ----

DLOPS_DEVICE void bar_sync(int id, int threads DLOPS_LOC) {
  DLOPS_PTX(75, asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"),
            simt::named_barrier_sync(id, threads, loc));
}
DLOPS_DEVICE void bar_arrive(int id, int threads DLOPS_LOC) {  // counts this thread and does not wait
  DLOPS_PTX(75, asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"),
            simt::named_barrier_arrive(id, threads, loc));
}

// ---- mbarrier (sm_90): a phase ends when `count` arrivals and all expected bytes have come. 9.7.13.15 ----

DLOPS_DEVICE void mbarrier_init(uint64_t* bar, uint32_t count DLOPS_LOC) {
  DLOPS_PTX(90,
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)),
                         "r"(count) : "memory"),
            simt::mbarrier_init(bar, count, loc));
}
DLOPS_DEVICE void mbarrier_arrive(uint64_t* bar DLOPS_LOC) {
  DLOPS_PTX(90,
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory"),
            simt::mbarrier_arrive(bar, 0, loc));
}
// Arrives and adds `bytes` to what the phase waits for: before the copies that bring them.
DLOPS_DEVICE void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t bytes DLOPS_LOC) {
  DLOPS_PTX(90,
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
                         "r"(bytes) : "memory"),
            simt::mbarrier_arrive(bar, bytes, loc));
}
// Until the phase of that parity is over: of a fresh barrier, parity 1 is and parity 0 is not.
DLOPS_DEVICE void mbarrier_wait(uint64_t* bar, uint32_t parity DLOPS_LOC) {
  DLOPS_PTX(90,
            asm volatile("{\n.reg .pred over;\n"
                         "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                         "@!over bra again;\n}" ::"r"(shared_address(bar)),
                         "r"(parity) : "memory"),
            simt::mbarrier_wait(bar, parity, loc));
}

// ---- fences (sm_90). 9.7.13.4 ----

// The thread's mbarrier_init before what the cluster's threads and the copy engine do after the next barrier.
DLOPS_DEVICE void fence_mbarrier_init(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90, asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"),
            simt::fence_mbarrier_init(loc));
}
// The thread's accesses to shared memory before those of tensor copies and wgmma, which go by another path.
DLOPS_DEVICE void fence_proxy_async(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90, asm volatile("fence.proxy.async.shared::cta;" :: : "memory"), simt::fence_proxy_async(loc));
}

// ---- thread-block clusters (sm_90) ----

// The barrier of all threads of the cluster; it orders their shared memory. 9.7.13.3, barrier.cluster.
DLOPS_DEVICE void cluster_sync(DLOPS_LOC_ONLY) {
  DLOPS_PTX(
      90,
      asm volatile(
          "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :: : "memory"),
      simt::cluster_sync(loc));
}
// This block's number within its cluster. 10.16, %cluster_ctarank.
DLOPS_DEVICE uint32_t cluster_rank() {
  uint32_t rank = 0;
  DLOPS_PTX(90, asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)), rank = simt::cluster_rank());
  return rank;
}
// Where p, of this block's shared memory, lies in that of another block of the cluster. 9.7.9.23, mapa.
template <class T>
DLOPS_DEVICE T* cluster_map(T* p, uint32_t rank DLOPS_LOC) {
  T* there = nullptr;
  DLOPS_PTX(90, asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank)),
            there = static_cast<T*>(simt::cluster_map(p, rank, loc)));
  return there;
}

// ---- registers move between warpgroups (sm_90a): N per thread, a multiple of 8. 9.7.19.5, setmaxnreg ----

template <int N>
DLOPS_DEVICE void reg_alloc() {
  static_assert(N % 8 == 0 && 24 <= N && N <= 256);
  DLOPS_PTX(90a, asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)), );
}
template <int N>
DLOPS_DEVICE void reg_dealloc() {
  static_assert(N % 8 == 0 && 24 <= N && N <= 256);
  DLOPS_PTX(90a, asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)), );
}

}  // namespace dlops::ptx
