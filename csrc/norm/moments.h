// What every kernel of the family is made of: the end of a run that is no whole vector, mean and variance that survive a
// large mean, and loops that share one parallel region.
#pragma once
#include <omp.h>

#include <type_traits>

#include "../cpu/math.h"
#include "../cpu/scratch.h"
#include "../cpu/simd.h"
#include "params.h"

namespace dlops {
namespace {

// The leaf loops: one copy each, however many loops above call them.
#define DLOPS_LEAF static __attribute__((noinline))

// 16 KiB of float32: a piece that two passes read stays in a 32 KiB L1.
constexpr int64_t kPiece = 4096;

DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DLOPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// A parameter of n values as float32: in place, converted, or the constant that stands for an absent one, so that one
// kernel serves all.
class FloatParam {
 public:
  FloatParam(const void* data, Dtype dtype, int64_t n, float absent)
      : scratch_(data && dtype == Dtype::f32 ? 0 : static_cast<size_t>(n) * sizeof(float)) {
    if (data && dtype == Dtype::f32) {
      values_ = static_cast<const float*>(data);
      return;
    }
    float* own = scratch_.floats();
    for (int64_t i = 0; i < n; i++)
      own[i] = !data                 ? absent
               : dtype == Dtype::f16 ? load1(static_cast<const Half*>(data) + i)
                                     : load1(static_cast<const Bfloat*>(data) + i);
    values_ = own;
  }
  operator const float*() const { return values_; }

 private:
  cpu::Scratch scratch_;
  const float* values_;
};

// ---- the last vector of a run of n elements reaches back over lanes that the loop has already seen; `fresh` marks the
// others. A run shorter than a vector is moved element by element ----

template <class T>
DLOPS_INLINE Vec load_last(const T* p, int64_t n) {
  return n >= kLanes ? load(p + n - kLanes) : load_part(p, static_cast<int>(n));
}
template <class T>
DLOPS_INLINE void store_last(T* p, int64_t n, Vec v) {
  if (n >= kLanes) {
    store(p + n - kLanes, v);
  } else {
    store_part(p, v, static_cast<int>(n));
  }
}
DLOPS_INLINE VecI fresh(int64_t n) {
  const int32_t rest = static_cast<int32_t>(n % kLanes);
  return n >= kLanes ? lane_index() >= kLanes - rest : lane_index() < rest;
}

// f(j, i) for whole vectors at i, i + kLanes, ...: j in [0, 4) names the accumulator, so that four sums run side by side.
// Returns where the whole vectors end.
template <class F>
DLOPS_INLINE int64_t whole_vectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) f(j, i + j * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) f(0, i);
  return i;
}
// Four sums. (Not Vec[4] = {}: GCC clears that with `rep stos`, which costs as much as a short row.)
struct Sums {
  Vec v[4] = {zero(), zero(), zero(), zero()};
  Vec& operator[](int j) { return v[j]; }
  float total() const { return reduce_add((v[0] + v[1]) + (v[2] + v[3])); }
};

// f(i) for the whole vectors of a run, and the cache lines at next, next + 1 line, ... asked for on the way: what the
// thread reads after this run. Returns where the whole vectors end.
template <class T, class F>
DLOPS_INLINE int64_t whole_vectors_ahead(int64_t n, const T* next, F f) {
  constexpr int kLine = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    __builtin_prefetch(next + i, 0, 2);
#pragma GCC unroll 8
    for (int j = 0; j < kLine; j += kLanes) f(i + j);
  }
  for (; i + kLanes <= n; i += kLanes) f(i);
  return i;
}

// ---- mean and variance ----

// Count, mean and sum of squared deviations; two of them merge into those of the union (Chan, Golub, LeVeque 1979).
struct Moments {
  double count = 0, mean = 0, m2 = 0;
  void merge(const Moments& o) {
    if (o.count == 0) return;
    const double delta = o.mean - mean, all = count + o.count;
    mean += delta * (o.count / all);
    m2 += o.m2 + delta * delta * (count * o.count / all);
    count = all;
  }
  double rstd(float eps) const { return 1 / __builtin_sqrt(m2 / count + static_cast<double>(eps)); }
};

// The moments of n values from their sums about a centre. The centre is the mean but for rounding; s1 takes that out.
DLOPS_INLINE Moments about(double centre, double n, double s1, double s2) {
  const double off = s1 * (1 / n), m2 = s2 - s1 * off;
  return {n, centre + off, m2 > 0 ? m2 : m2 == m2 ? 0 : m2};  // NaN stays NaN
}

// Two passes over n <= kPiece elements: the mean, then the deviations from it. Sums of deviations lose nothing to a large
// mean, which the textbook's E[x^2] - E[x]^2 does.
template <class T>
DLOPS_LEAF Moments piece_moments(const T* p, int64_t n) {
  Sums sum, s1, s2;
  int64_t end = whole_vectors(n, [&](int j, int64_t i) { sum[j] = sum[j] + load(p + i); });
  const VecI last = fresh(n);
  if (end < n) sum[1] = sum[1] + select(last, load_last(p, n), zero());
  const float centre = static_cast<float>(sum.total() * (1 / static_cast<double>(n)));
  auto add = [&](int j, Vec d) {
    s1[j] = s1[j] + d;
    s2[j] = fma(d, d, s2[j]);
  };
  whole_vectors(n, [&](int j, int64_t i) { add(j, load(p + i) - set1(centre)); });
  if (end < n) add(1, select(last, load_last(p, n) - set1(centre), zero()));
  return about(centre, static_cast<double>(n), s1.total(), s2.total());
}

template <class T>
inline Moments moments(const T* p, int64_t n) {
  Moments all = piece_moments(p, smaller(n, kPiece));
  for (int64_t i = kPiece; i < n; i += kPiece) all.merge(piece_moments(p + i, smaller(n - i, kPiece)));
  return all;
}

// The statistics as the second pass takes them. A float32 mean alone would be off by half a unit in the last place of the
// mean, which at a mean of 1e4 and a deviation of 1 is 5e-4 of every output; `low` is what it lost.
struct Normalizer {
  float mean, low, rstd;
  Normalizer(double mean, double rstd)
      : mean(static_cast<float>(mean)),
        low(static_cast<float>(mean - this->mean)),
        rstd(static_cast<float>(rstd)) {}
  Normalizer(const Moments& m, float eps) : Normalizer(m.mean, m.rstd(eps)) {}
};

// ---- loops in one parallel region ----

// One loop of `tasks`; f(task, worker), worker < threads. Tasks are claimed one at a time; no result may depend on who ran
// a task.
template <class F>
struct Phase {
  int64_t tasks;
  F f;
};
template <class F>
Phase(int64_t, F) -> Phase<F>;

template <class F>
inline void run_in_team(const Phase<F>& phase) {
  const int worker = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
  for (int64_t i = 0; i < phase.tasks; i++) phase.f(i, worker);
}
template <class F>
inline void run_alone(const Phase<F>& phase) {
  for (int64_t i = 0; i < phase.tasks; i++) phase.f(i, 0);
}

// Runs the phases one after the other: each starts when the one before it is done everywhere.
template <class... F>
inline void run_phases(int threads, const Phase<F>&... phases) {
  int64_t tasks = 0;
  ((tasks = larger(tasks, phases.tasks)), ...);
  const int team = static_cast<int>(smaller(tasks, threads));
  if (team <= 1) {
    (run_alone(phases), ...);
    return;
  }
#pragma omp parallel num_threads(team)
  (run_in_team(phases), ...);
}

}  // namespace
}  // namespace dlops
