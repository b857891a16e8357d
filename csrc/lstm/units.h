// Loops over the units of a row, a vector at a time. The body is written once for whole vectors and for the last part of
// one; what lies past the end is neither read nor written.
#pragma once
#include "../cpu/simd.h"

namespace dlops {
namespace {

struct Whole {};
struct Part { int n; };

template <class T>
DLOPS_INLINE Vec get(const T* p, Whole) {
  return load(p);
}
template <class T>
DLOPS_INLINE Vec get(const T* p, Part part) {
  return load_part(p, part.n);
}
template <class T>
DLOPS_INLINE void put(T* p, Vec v, Whole) {
  store(p, v);
}
template <class T>
DLOPS_INLINE void put(T* p, Vec v, Part part) {
  store_part(p, v, part.n);
}

// Lanes where the byte is not 0.
DLOPS_INLINE VecI flags(const uint8_t* p, Whole) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, VecI) != 0;
}
DLOPS_INLINE VecI flags(const uint8_t* p, Part part) {
  VecI lanes{};
  for (int i = 0; i < part.n; i++) lanes[i] = p[i] ? -1 : 0;
  return lanes;
}

// For sums over a row: zeros past its end.
DLOPS_INLINE Vec within(Vec v, Whole) { return v; }
DLOPS_INLINE Vec within(Vec v, Part part) { return select(lane_index() < set1i(part.n), v, zero()); }

// f(unit, Whole or Part) for the vectors of [begin, end).
template <class F>
DLOPS_INLINE void for_units(int64_t begin, int64_t end, F f) {
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) f(j, Whole());
  if (j < end) f(j, Part{static_cast<int>(end - j)});
}

}  // namespace
}  // namespace dlops
