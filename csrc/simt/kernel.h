// The machine as a kernel sees it; what is behind it is machine.h. Kept small: every kernel's file includes this.
#pragma once
#include <cstddef>
#include <cstdint>

#include "location.h"
#include "types.h"

namespace dlops::simt {

struct Here {  // the CUDA thread that runs
  dim3 thread_index, block_index;
  const dim3 *block_size = nullptr, *grid_size = nullptr;
  int lane = 0;
};
// Null outside of kernels. __thread, not thread_local: no initialisation that every access would have to ask for.
extern __thread Here* here __attribute__((tls_model("initial-exec")));

struct Config {  // what a launch asks for
  dim3 grid, block, cluster{1, 1, 1};
  size_t smem = 0;
  bool cooperative = false;
  const void* kernel = nullptr;
  const void* arguments = nullptr;  // the kernel's parameters
  size_t argument_bytes = 0;
};
// Runs body(config.arguments) once per thread of the grid. Throws Error.
void run(const Config&, void (*body)(const void* arguments));

[[noreturn]] void fail(Loc, const char* format, ...) __attribute__((format(printf, 2, 3)));
void yield(Loc);  // gives way once: spin loops, and atomics in random order
void before_atomic(void* p, size_t bytes, Loc);
void block_barrier(const char* what, Loc);

// How a meeting orders memory: not at all, or as a barrier among those who met.
enum class Orders { nothing, memory };
// The lanes of `mask` meet; the last to come runs f over their arguments (by lane; null for lanes not in the mask).
using Run = void (*)(void** arguments);
void meet_warp(uint32_t mask, const char* what, Loc, void* argument, Run, Orders = Orders::nothing);

template <class A>
inline void warp_collective(uint32_t mask, const char* what, Loc loc, A& argument, void (*f)(A**)) {
  meet_warp(mask, what, loc, &argument, reinterpret_cast<Run>(f));
}

// Behind DLOPS_DYNAMIC_SHARED and DLOPS_SHARED; `tag` is one address per variable.
void* dynamic_shared(const char* name, size_t alignment, Loc = Loc());
void* static_shared(const void* tag, const char* name, size_t size, size_t alignment, Loc = Loc());

void trace(const char* name, double value, Loc = Loc());

}  // namespace dlops::simt
