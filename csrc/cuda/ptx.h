// Instructions that CUDA C++ has no name for, one per function. The simt runner sees the plain C++ twin.
#pragma once
#include "launch.h"

namespace dlops::ptx {

// 16 bytes that this kernel reads once: they go to registers and take no line of the L1 cache. Not .nc: `out` may be
// the input's own memory. PTX ISA 9.7.9.8, ld.
DLOPS_DEVICE uint4 load_once(const uint4* p) {
#if defined(__CUDACC__)
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
#else
  return *p;
#endif
}

}  // namespace dlops::ptx
