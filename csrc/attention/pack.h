// Moving a block of rows between memory, [rows][d] of any type and row stride, and lanes, [d][lanes] float32 with one
// row per lane: squares of kLanes rows x kLanes elements are transposed in registers.
#pragma once
#include "../cpu/simd.h"

namespace dlops {
namespace {

// v[i][j] becomes v[j][i]. A zip of the two halves rotates the number (row, lane) of every element by one bit; as many
// of them as a lane number has bits swap row and lane.
DLOPS_INLINE void transpose(Vec (&v)[kLanes]) {
#pragma GCC unroll 4
  for (int bit = 1; bit < kLanes; bit *= 2) {
    Vec w[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; i++) {
      w[2 * i] = zip_lo(v[i], v[i + kLanes / 2]);
      w[2 * i + 1] = zip_hi(v[i], v[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) v[i] = w[i];
  }
}

// Calls f(i, width) for every group of kLanes elements of [0, d). The last group overlaps its neighbour where d is no
// multiple: reading or writing an element twice is cheaper than a partial vector. Only d < kLanes has width d.
template <class F>
DLOPS_INLINE void groups(int64_t d, F f) {
  const int width = d < kLanes ? static_cast<int>(d) : kLanes;
  for (int64_t i = 0; i < d; i += kLanes) f(i + kLanes <= d || d < kLanes ? i : d - kLanes, width);
}
template <class T>
DLOPS_INLINE Vec load_width(const T* p, int width) {
  return width == kLanes ? load(p) : load_part(p, width);
}

// from [count][d] (row_stride apart) -> to [d][lanes], times scale. In the last vector, lanes past count are zero.
template <class T>
__attribute__((noinline)) void pack_rows(const T* from, int64_t row_stride, int64_t count, int64_t d,
                                         float scale, float* to, int64_t lanes) {
  const Vec factor = set1(scale);
  for (int64_t first = 0; first < count; first += kLanes) {
    const T* rows = from + first * row_stride;
    const int64_t n = count - first < kLanes ? count - first : kLanes;
    groups(d, [&](int64_t i, int width) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++)
        v[r] = r < n ? load_width(rows + r * row_stride + i, width) * factor : zero();
      transpose(v);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++)
        if (r < width) store(to + (i + r) * lanes + first, v[r]);
    });
  }
}

// from [d][lanes] -> to [count][d] (row_stride apart), lane r times factor[r] (readable up to whole vectors).
template <class T>
__attribute__((noinline)) void unpack_rows(const float* from, int64_t lanes, const float* factor, T* to,
                                           int64_t row_stride, int64_t count, int64_t d) {
  for (int64_t first = 0; first < count; first += kLanes) {
    const Vec scale = load(factor + first);
    const int64_t n = count - first < kLanes ? count - first : kLanes;
    T* rows = to + first * row_stride;
    groups(d, [&](int64_t i, int width) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++)
        v[r] = r < width ? load(from + (i + r) * lanes + first) * scale : zero();
      transpose(v);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++) {
        if (r >= n) continue;
        if (width == kLanes)
          store(rows + r * row_stride + i, v[r]);
        else
          store_part(rows + r * row_stride + i, v[r], width);
      }
    });
  }
}

// Rows as float32: themselves, or a widened copy in `to` [count][d].
struct FloatRows {
  const float* data;
  int64_t stride;
};
DLOPS_INLINE FloatRows float_rows(const float* from, int64_t row_stride, int64_t, int64_t, float*) {
  return {from, row_stride};
}
template <class T>
__attribute__((noinline)) FloatRows float_rows(const T* from, int64_t row_stride, int64_t count, int64_t d,
                                               float* to) {
  for (int64_t r = 0; r < count; r++) {
    const T* row = from + r * row_stride;
    float* wide = to + r * d;
    groups(d, [&](int64_t i, int width) {
      if (width == kLanes)
        store(wide + i, load(row + i));
      else
        for (int j = 0; j < width; j++) wide[j] = load1(row + j);
    });
  }
  return {to, d};
}

}  // namespace
}  // namespace dlops
