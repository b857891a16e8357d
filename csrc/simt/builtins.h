// CUDA's built-in functions: barriers, shuffles, votes, atomics.
#pragma once
#include <type_traits>

#include "kernel.h"

// Code that is the machine's although it is compiled with the kernel: its accesses are not the kernel's.
#define DLOPS_SIMT_MACHINE __attribute__((no_sanitize_thread))

inline void __syncthreads(DLOPS_LOC_ONLY) { dlops::simt::block_barrier("__syncthreads", loc); }
inline void __syncwarp(uint32_t mask = ~0u DLOPS_LOC) {
  dlops::simt::meet_warp(mask, "__syncwarp", loc, nullptr, nullptr, dlops::simt::Orders::memory);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned DLOPS_LOC) { dlops::simt::yield(loc); }
[[noreturn]] inline void __trap(DLOPS_LOC_ONLY) { dlops::simt::fail(loc, "__trap()"); }

namespace dlops::simt {

// ---- shuffles: every lane brings a value, and takes that of lane `from` ----

template <class T>
struct Shuffled {
  T in, out;
  int from;
};

template <class T>
inline T shuffle(uint32_t mask, T value, int from, const char* what, Loc loc) {
  if ((mask >> here->lane & 1) && !(mask >> from & 1))
    fail(loc, "%s: lane %d reads lane %d, which is not in the mask", what, here->lane, from);
  Shuffled<T> mine{value, value, from};
  warp_collective<Shuffled<T>>(mask, what, loc, mine, [](Shuffled<T>** lanes) DLOPS_SIMT_MACHINE {
    for (int l = 0; l < 32; l++) {
      if (!lanes[l]) continue;
      // A warp that the block does not fill lacks lanes: what they would bring is undefined.
      if (lanes[lanes[l]->from]) lanes[l]->out = lanes[lanes[l]->from]->in;
    }
  });
  return mine.out;
}
// A warp is cut into segments of `width` lanes; a source outside of the own one is the lane itself.
inline int segment(int width) { return here->lane & ~(width - 1); }
inline int in_segment(int from, int width) {
  return from >= segment(width) && from < segment(width) + width ? from : here->lane;
}

// ---- votes ----

struct Vote {
  bool in;
  uint32_t out;
};
inline uint32_t vote(uint32_t mask, bool in, const char* what, Loc loc) {
  Vote mine{in, 0};
  warp_collective<Vote>(mask, what, loc, mine, [](Vote** lanes) DLOPS_SIMT_MACHINE {
    uint32_t set = 0;
    for (int l = 0; l < 32; l++)
      if (lanes[l] && lanes[l]->in) set |= 1u << l;
    for (int l = 0; l < 32; l++)
      if (lanes[l]) lanes[l]->out = set;
  });
  return mine.out;
}

// ---- atomics: the machine's own, because blocks run on several OS threads ----

template <class T, class F>
__attribute__((noinline)) DLOPS_SIMT_MACHINE T atomic_update(T* p, F f, Loc loc) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Word));
  before_atomic(p, sizeof(T), loc);
  Word* word = reinterpret_cast<Word*>(p);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old, bits<Word>(static_cast<T>(f(bits<T>(old)))), false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return bits<T>(old);
}

}  // namespace dlops::simt

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int from, int width = 32 DLOPS_LOC) {
  return dlops::simt::shuffle(mask, value, dlops::simt::segment(width) + (from & (width - 1)), "__shfl_sync",
                              loc);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32 DLOPS_LOC) {
  int from = dlops::simt::here->lane ^ lanes;  // may lie in an earlier segment (PTX ISA 9.7.9.6, shfl.bfly)
  if (from >= dlops::simt::segment(width) + width) from = dlops::simt::here->lane;
  return dlops::simt::shuffle(mask, value, from, "__shfl_xor_sync", loc);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int lanes, int width = 32 DLOPS_LOC) {
  const int from = dlops::simt::in_segment(dlops::simt::here->lane + lanes, width);
  return dlops::simt::shuffle(mask, value, from, "__shfl_down_sync", loc);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, int lanes, int width = 32 DLOPS_LOC) {
  const int from = dlops::simt::in_segment(dlops::simt::here->lane - lanes, width);
  return dlops::simt::shuffle(mask, value, from, "__shfl_up_sync", loc);
}
inline unsigned __ballot_sync(uint32_t mask, bool in DLOPS_LOC) {
  return dlops::simt::vote(mask, in, "__ballot_sync", loc);
}
inline int __any_sync(uint32_t mask, bool in DLOPS_LOC) {
  return dlops::simt::vote(mask, in, "__any_sync", loc) != 0;
}
inline int __all_sync(uint32_t mask, bool in DLOPS_LOC) {
  return dlops::simt::vote(mask, !in, "__all_sync", loc) == 0;
}

#define DLOPS_SIMT_ATOMIC(name, expression)                                            \
  template <class T>                                                                   \
  inline T name(T* p, T v DLOPS_LOC) {                                                 \
    return dlops::simt::atomic_update(p, [v](T old) -> T { return expression; }, loc); \
  }
DLOPS_SIMT_ATOMIC(atomicAdd, old + v)
DLOPS_SIMT_ATOMIC(atomicMax, old > v ? old : v)
DLOPS_SIMT_ATOMIC(atomicMin, old < v ? old : v)
DLOPS_SIMT_ATOMIC(atomicExch, ((void)old, v))
DLOPS_SIMT_ATOMIC(atomicOr, old | v)
template <class T>
inline T atomicCAS(T* p, T expected, T v DLOPS_LOC) {
  return dlops::simt::atomic_update(p, [=](T old) { return old == expected ? v : old; }, loc);
}
