// How the CPU kernels walk [N, M]: spans of one sample's elements, and blocks of 4 vectors within a span.
#pragma once
#include <type_traits>

#include "../cpu/parallel.h"
#include "../cpu/simd.h"
#include "params.h"

namespace dlops {
namespace {

constexpr int kBlock = 4 * kLanes;
// 32 KiB of float32 per tensor: a chunk's tensors stay in L2, and a thread's claim costs nothing beside it.
constexpr int64_t kChunk = 8192;

struct Span {
  int64_t sample, offset;  // offset of the sample's first element in [N, M]
  int64_t begin, end;      // elements of the sample; begin is a multiple of kBlock
};

template <class T>
DLOPS_INLINE const T* at(const void* base, const Span& s, int64_t i) {
  return static_cast<const T*>(base) + s.offset + i;
}
template <class T>
DLOPS_INLINE T* at(void* base, const Span& s, int64_t i) {
  return static_cast<T*>(base) + s.offset + i;
}

DLOPS_INLINE int64_t row_of(const RowChoice& c, int64_t sample) {
  int64_t row = c.rows ? c.rows[sample * c.row_stride] : c.row;
  return row < 0 ? 0 : row >= c.table_rows ? c.table_rows - 1 : row;
}

// f(span) over all of [N, M]: chunks of large samples, runs of small ones.
template <class F>
inline void for_spans(int threads, int64_t samples, int64_t elements, F f) {
  const int64_t per_sample = (elements + kChunk - 1) / kChunk;
  if (per_sample > 1) {
    parallel_for(threads, samples * per_sample, [&](int64_t task) {
      int64_t n = task / per_sample, begin = task % per_sample * kChunk;
      int64_t end = begin + kChunk < elements ? begin + kChunk : elements;
      f(Span{n, n * elements, begin, end});
    });
  } else {
    const int64_t run = kChunk / elements;
    parallel_for(threads, (samples + run - 1) / run, [&](int64_t task) {
      int64_t last = (task + 1) * run < samples ? (task + 1) * run : samples;
      for (int64_t n = task * run; n < last; n++) f(Span{n, n * elements, 0, elements});
    });
  }
}

template <class F>
DLOPS_INLINE void each4(F f) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) f(j);
}

// How many of vector j's lanes exist when `left` elements remain.
DLOPS_INLINE int part(int64_t left, int j) {
  int64_t n = left - j * kLanes;
  return static_cast<int>(n < 0 ? 0 : n > kLanes ? kLanes : n);
}

// 4 vectors; the last block of a span may have fewer than kBlock elements left.
template <class T>
DLOPS_INLINE void load4(const T* p, int64_t left, Vec (&v)[4]) {
  if (left >= kBlock) {
    each4([&](int j) { v[j] = load(p + j * kLanes); });
  } else {
    for (int j = 0; j < 4; j++) v[j] = load_part(p + j * kLanes, part(left, j));
  }
}
template <class T>
DLOPS_INLINE void store4(T* p, int64_t left, const Vec (&v)[4]) {
  if (left >= kBlock) {
    each4([&](int j) { store(p + j * kLanes, v[j]); });
  } else {
    for (int j = 0; j < 4; j++) store_part(p + j * kLanes, v[j], part(left, j));
  }
}

}  // namespace
}  // namespace dlops
