// A few neighbouring units of one sample, as one thread takes them: their values come and go in one access where memory
// allows it, and each value is moved once.
#pragma once
#include "../catalogue.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "cell.cuh"

namespace dlops::lstm {

#define DLOPS_GATES_KERNEL(op, tile, name) \
  DLOPS_CUDA_KERNEL(op, "lstm", "fused_cell", "sm_75 sm_80 sm_90a", "f32 f16 bf16", tile, name, 0)

constexpr int kUnits = 4;
inline int64_t unit_chunks(int64_t hidden) { return ceil_div(hidden, kUnits); }

struct Units {
  int64_t first;
  int count;  // of the kUnits, those that exist
  bool wide;  // one access: all exist, and all memory is aligned

  DLOPS_DEVICE Units(int64_t first, int64_t hidden, bool wide)
      : first(first),
        count(hidden - first < kUnits ? static_cast<int>(hidden - first) : kUnits),
        wide(wide) {}
};

// Host: may rows of `hidden` values be moved kUnits at a time? T: of these pointers; null ones do not object.
template <class T, class... P>
bool wide_units(int64_t hidden, P... pointers) {
  constexpr size_t size = kUnits * sizeof(T);
  return hidden % kUnits == 0 &&
         ((reinterpret_cast<uintptr_t>(static_cast<const void*>(pointers)) % size == 0) && ...);
}

// The units' values of `row`, which starts at its unit 0; zeros where there is no array, or no unit.
template <class T>
DLOPS_DEVICE void read(const void* array, int64_t row, const Units& u, float (&v)[kUnits]) {
  const T* from = static_cast<const T*>(array) + row + u.first;
  if (array && u.wide) {
    if constexpr (sizeof(T) == 4) {
      unpack<T>(*reinterpret_cast<const uint4*>(from), v);
    } else {
      const uint2 pairs = *reinterpret_cast<const uint2*>(from);
      unpack_word<T>(pairs.x, v);
      unpack_word<T>(pairs.y, v + 2);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kUnits; j++) v[j] = array && j < u.count ? static_cast<float>(from[j]) : 0.f;
}

template <class T>
DLOPS_DEVICE void write(void* array, int64_t row, const Units& u, const float (&v)[kUnits]) {
  if (!array) return;
  T* to = static_cast<T*>(array) + row + u.first;
  if (u.wide) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<uint4*>(to) = pack<T>(v);
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack_word<T>(v), pack_word<T>(v + 2));
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kUnits; j++)
    if (j < u.count) to[j] = T(v[j]);
}

// N parts of a row, [N, H], as values per unit.
template <class T, int N>
DLOPS_DEVICE void read_parts(const void* array, int64_t row, int64_t hidden, const Units& u,
                             float (&v)[kUnits][N]) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    float part[kUnits];
    read<T>(array, row + n * hidden, u, part);
#pragma unroll
    for (int j = 0; j < kUnits; j++) v[j][n] = part[j];
  }
}
template <class T, int N>
DLOPS_DEVICE void write_parts(void* array, int64_t row, int64_t hidden, const Units& u,
                              const float (&v)[kUnits][N]) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    float part[kUnits];
#pragma unroll
    for (int j = 0; j < kUnits; j++) part[j] = v[j][n];
    write<T>(array, row + n * hidden, u, part);
  }
}

// The share of the old state per unit of sample b.
DLOPS_DEVICE void read_shares(const Zoneout& z, int64_t row, const Units& u, float (&share)[kUnits]) {
#pragma unroll
  for (int j = 0; j < kUnits; j++) share[j] = j < u.count ? z.share(row + u.first + j) : 0.f;
}

}  // namespace dlops::lstm
