// Depthwise convolution with pixels in lanes: one channel's plane in scratch.
#pragma once
#include "depthwise_image.h"

namespace dlops {
namespace {

// Vectors side by side in a register tile of square kernels, and its rows.
#if defined(__AVX512F__)
constexpr int kRowVectors = 2;
#else
constexpr int kRowVectors = 1;
#endif
constexpr int kRows = 8, kRowUnits = kRowVectors * kLanes;

struct PlaneTaps {
  const float* weights;  // [depth, width, height of the kernel]: a column is in registers
  int64_t depth, slice, row;
};

// kRows x NX vectors of sums of a K x K kernel: stride 1, dilation 1. A vector of pixels serves all the rows that it meets.
template <int K, int NX>
DLOPS_INLINE void square_tile(const PlaneTaps& taps, const float* plane, float* sums, int64_t sums_row) {
  Vec sum[kRows][NX];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < NX; j++) sum[r][j] = zero();
  const float* w = taps.weights;
  for (int64_t z = 0; z < taps.depth; z++)
#pragma GCC unroll 1
    for (int x = 0; x < K; x++, w += K) {
      Vec column[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; k++) column[k] = set1(w[k]);
      const float* p = plane + z * taps.slice + x;
#pragma GCC unroll 16
      for (int y = 0; y < kRows + K - 1; y++, p += taps.row) {
        Vec pixels[NX];
#pragma GCC unroll 4
        for (int j = 0; j < NX; j++) pixels[j] = load(p + j * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++)
          if (y >= r && y - r < K)
#pragma GCC unroll 4
            for (int j = 0; j < NX; j++) sum[r][j] = fma(pixels[j], column[y - r], sum[r][j]);
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < NX; j++) store(sums + r * sums_row + j * kLanes, sum[r][j]);
}

// kRows rows of sums, `width` of them rounded up to whole vectors.
template <int K>
__attribute__((noinline)) void square_rows(const PlaneTaps& taps, const float* plane, int64_t width,
                                           float* sums, int64_t sums_row) {
  int64_t q = 0;
  for (; q + (kRowVectors - 1) * kLanes < width; q += kRowUnits)
    square_tile<K, kRowVectors>(taps, plane + q, sums + q, sums_row);
  if (q < width) square_tile<K, 1>(taps, plane + q, sums + q, sums_row);
}

// Any kernel, stride and dilation: NX vectors of one row, tap by tap.
struct RowOfPlane {
  const float* weights;   // [depth, height, width of the kernel]
  const int64_t* tap_at;  // of each width tap, in floats (the row may be split by phases)
  int64_t taps[3], slice, line;
};

template <int NX>
DLOPS_INLINE void any_tile(const RowOfPlane& r, const float* image, float* sums) {
  Vec sum[NX];
#pragma GCC unroll 8
  for (int j = 0; j < NX; j++) sum[j] = zero();
  const float* w = r.weights;
  for (int64_t z = 0; z < r.taps[0]; z++)
    for (int64_t y = 0; y < r.taps[1]; y++) {
      const float* line = image + z * r.slice + y * r.line;
      for (int64_t x = 0; x < r.taps[2]; x++) {
        const Vec tap = set1(*w++);
        const float* p = line + r.tap_at[x];
#pragma GCC unroll 8
        for (int j = 0; j < NX; j++) sum[j] = fma(load(p + j * kLanes), tap, sum[j]);
      }
    }
#pragma GCC unroll 8
  for (int j = 0; j < NX; j++) store(sums + j * kLanes, sum[j]);
}

constexpr int kAnyVectors = 8;
__attribute__((noinline)) void any_row(const RowOfPlane& r, const float* image, int64_t width, float* sums) {
  int64_t q = 0;
  for (; q + (kAnyVectors - 1) * kLanes < width; q += kAnyVectors * kLanes)
    any_tile<kAnyVectors>(r, image + q, sums + q);
  for (; q + kLanes < width; q += 2 * kLanes) any_tile<2>(r, image + q, sums + q);
  if (q < width) any_tile<1>(r, image + q, sums + q);
}

DLOPS_INLINE bool is_square(const Axis (&a)[3]) {
  const int64_t k = a[2].taps;
  return a[1].taps == k && (k == 3 || k == 5 || k == 7) && a[0].stride == 1 && a[1].stride == 1 &&
         a[2].stride == 1 && a[1].dilation == 1 && a[2].dilation == 1;
}

// Floats that a tile of `t`'s size needs: rows are computed kRows at a time in whole vectors, reading as far past the end.
inline int64_t sums_row(const Tile& t) { return round_up(t.size[2], kAnyVectors * kLanes); }
inline int64_t plane_floats(const Axis (&axes)[3], const Tile& t) {
  const PlanePitch p = plane_pitch(t, axes[2].stride);
  return p.slice * t.window[0].count + (kRows + 1) * p.row + 2 * kAnyVectors * kLanes;
}

constexpr int64_t kLargestWidth = 63;

// The weights of a tile, one channel's, in the order of its engine; `from` holds them kLanes apart, [depth, height, width].
inline void plane_weights(const Axis (&a)[3], const float* from, float* to) {
  const int64_t height = a[1].taps, width = a[2].taps;
  const bool by_column = is_square(a);
  for (int64_t z = 0; z < a[0].taps; z++)
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++) {
        const int64_t i = by_column ? x * height + y : y * width + x;
        to[z * height * width + i] = from[((z * height + y) * width + x) * kLanes];
      }
}

// row(z, y, its sums) for every row of outputs of the tile. sums: kRows rows.
template <class Row>
DLOPS_INLINE void convolve_plane(const Axis (&axes)[3], const Tile& t, const float* plane,
                                 const float* weights, float* sums, Row row) {
  const PlanePitch p = plane_pitch(t, axes[2].stride);
  const int64_t pitch = sums_row(t);
  if (is_square(axes)) {
    const PlaneTaps taps = {weights, axes[0].taps, p.slice * axes[0].dilation, p.row};
    for (int64_t z = 0; z < t.size[0]; z++)
      for (int64_t y = 0; y < t.size[1]; y += kRows) {
        const float* from = plane + z * p.slice + y * p.row;
        if (axes[2].taps == 3) square_rows<3>(taps, from, t.size[2], sums, pitch);
        if (axes[2].taps == 5) square_rows<5>(taps, from, t.size[2], sums, pitch);
        if (axes[2].taps == 7) square_rows<7>(taps, from, t.size[2], sums, pitch);
        for (int64_t i = y; i < smaller(y + kRows, t.size[1]); i++) row(z, i, sums + (i - y) * pitch);
      }
    return;
  }
  int64_t tap_at[kLargestWidth];
  for (int64_t x = 0; x < axes[2].taps; x++) {
    const int64_t at = x * axes[2].dilation;
    tap_at[x] = at % p.phases * p.phase + at / p.phases;
  }
  const RowOfPlane r = {weights,
                        tap_at,
                        {axes[0].taps, axes[1].taps, axes[2].taps},
                        p.slice * axes[0].dilation,
                        p.row * axes[1].dilation};
  for (int64_t z = 0; z < t.size[0]; z++)
    for (int64_t y = 0; y < t.size[1]; y++) {
      any_row(r, plane + z * axes[0].stride * p.slice + y * axes[1].stride * p.row, t.size[2], sums);
      row(z, y, sums);
    }
}

}  // namespace
}  // namespace dlops
