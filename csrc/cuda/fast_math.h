// What the compiler is told by an empty or a single instruction, and what cannot be among the wrappers of ptx.h: an
// approximation's last bits are the hardware's own, so the simt runner, where it is the exact function, cannot be compared.
#pragma once
#include "launch.h"

namespace dlops {

// 2^x, to about 2 units in the last place (PTX ISA 9.0, 9.7.3.21, ex2). Results below 2^-126 are 0; exp2f would spend three
// more instructions on them.
DLOPS_DEVICE float exp2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// x, of which the compiler is to know nothing: what follows from it is computed here, not ahead of the loop that this stands
// in, where it would hold registers all along.
DLOPS_DEVICE int opaque(int x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

}  // namespace dlops
