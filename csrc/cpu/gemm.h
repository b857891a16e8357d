// The product of two small float32 matrices, the inner loop of every kernel that multiplies: columns of B and C are
// lanes, elements of A are broadcast, so A may have any strides and nothing is transposed.
//
//   C [m, NR kLanes]  =  alpha C + A [m, depth]  B [depth, NR kLanes]        A(i, k) = a[i * a_row + k * a_col]
//
// One register tile holds MR x NR vectors of C. It starts at zero and meets the C in memory once, at its end: sums of
// `depth` products are formed apart from the larger sum that they join, which halves the error of a long sum.
#pragma once
#include "simd.h"

namespace dlops {
namespace {

// Rows and vectors of a register tile: as many accumulators as leave room for one row of B and one element of A. Fewer
// vectors take more rows, or too few sums would be under way to hide the latency of fma.
#if defined(__AVX512F__)
constexpr int kTileVectors = 4;  // 24 + 4 + 1 of 32 registers
constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kTileVectors = 3;  // 12 + 3 + 1 of 16
constexpr int tile_rows(int vectors) { return vectors == 3 ? 4 : vectors == 2 ? 6 : 8; }
#endif

enum class Into {
  overwrite,  // C = A B
  add,        // C = C + A B
  scale       // C = alpha C + A B, one alpha per column
};

// kAlong: A's unit stride runs along k (a_col = 1, `stride` is a_row); otherwise along its rows (a_row = 1, a_col).
template <int MR, int NR, Into into, bool kAlong>
DLOPS_INLINE void multiply_tile(int64_t depth, const float* a, int64_t stride, const float* b, int64_t b_row,
                                float* c, int64_t c_row, const float* alpha) {
  Vec sum[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) sum[i][j] = zero();
  for (int64_t k = 0; k < depth; k++) {
    Vec row[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) row[j] = load(b + k * b_row + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const Vec x = set1(kAlong ? a[i * stride + k] : a[i + k * stride]);
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) sum[i][j] = fma(x, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      float* to = c + i * c_row + j * kLanes;
      if (into == Into::add) sum[i][j] = load(to) + sum[i][j];
      if (into == Into::scale) sum[i][j] = fma(load(alpha + j * kLanes), load(to), sum[i][j]);
      store(to, sum[i][j]);
    }
}

// The last rows, at most MR of them.
template <int MR, int NR, Into into, bool kAlong>
DLOPS_INLINE void multiply_rest(int64_t rows, int64_t depth, const float* a, int64_t stride, const float* b,
                                int64_t b_row, float* c, int64_t c_row, const float* alpha) {
  if constexpr (MR > 0) {
    if (rows == MR) return multiply_tile<MR, NR, into, kAlong>(depth, a, stride, b, b_row, c, c_row, alpha);
    multiply_rest<MR - 1, NR, into, kAlong>(rows, depth, a, stride, b, b_row, c, c_row, alpha);
  }
}

template <int NR, Into into, bool kAlong>
__attribute__((noinline)) void multiply(int64_t m, int64_t depth, const float* a, int64_t stride,
                                        const float* b, int64_t b_row, float* c, int64_t c_row,
                                        const float* alpha = nullptr) {
  constexpr int MR = tile_rows(NR),
                kRest = MR > 6 ? MR / 2 : MR - 1;  // of a high tile, one half is split off first
  const int64_t a_row = kAlong ? stride : 1;
  int64_t i = 0;
  for (; i + MR <= m; i += MR)
    multiply_tile<MR, NR, into, kAlong>(depth, a + i * a_row, stride, b, b_row, c + i * c_row, c_row, alpha);
  if (m - i > kRest) {
    multiply_tile<kRest, NR, into, kAlong>(depth, a + i * a_row, stride, b, b_row, c + i * c_row, c_row,
                                           alpha);
    i += kRest;
  }
  if (i < m)
    multiply_rest<kRest, NR, into, kAlong>(m - i, depth, a + i * a_row, stride, b, b_row, c + i * c_row,
                                           c_row, alpha);
}

}  // namespace
}  // namespace dlops
