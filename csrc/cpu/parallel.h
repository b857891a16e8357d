// OpenMP with three rules: the thread count comes from the caller (the torch face fills it from torch, so that
// set_num_threads holds in every Python thread and a forked child does not hang), chunks are claimed dynamically, and no
// result depends on who ran a chunk.
#pragma once
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../api.h"

namespace dlops::cpu {

// The first exception of a parallel region, which must not leave it: thrown again after it. In parallel.cpp, where every
// level shares one.
class FirstError {
 public:
  ~FirstError();
  void run(void (*f)(const void*, int64_t), const void* context, int64_t i) noexcept;
  void rethrow();

 private:
  void* error_ = nullptr;
};

}  // namespace dlops::cpu

namespace dlops {
namespace {

// f(i) for i in [0, n), each call on one thread.
template <class F>
inline void parallel_for(int threads, int64_t n, F f) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; i++) f(i);
    return;
  }
  int team = n < threads ? static_cast<int>(n) : threads;
  cpu::FirstError error;
  const auto call = [](const void* context, int64_t i) { (*static_cast<const F*>(context))(i); };
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
  for (int64_t i = 0; i < n; i++) error.run(call, &f, i);
  error.rethrow();
}

// f(member, members) once on each of `threads` threads, which may meet at team_barrier(). For kernels with many dependent
// steps, which would pay for a region each. f must not throw: a member that left would be waited for.
template <class F>
inline void team(int threads, F f) {
  if (threads <= 1) return f(0, 1);
#pragma omp parallel num_threads(threads)
  {
#if defined(_OPENMP)
    f(omp_get_thread_num(), omp_get_num_threads());
#endif
  }
}
inline void team_barrier() {
#pragma omp barrier
}

}  // namespace
}  // namespace dlops
