// The product of two small bfloat16 matrices with float32 sums, by the instruction vdpbf16ps: each 32-bit lane holds a
// pair of neighbours along the depth, multiplies it with another pair and adds both products. Otherwise as
// ../cpu/gemm.h:
//
//   C [m, NR kLanes]  =  alpha C + A [m, depth]  B [depth, NR kLanes]        depth counts pairs
//
// Subnormal numbers count as zero, in and out.
#pragma once
#include "../cpu/gemm.h"

namespace dlops {
namespace {

struct Pair { uint16_t first, second; };  // may lie at any even address
static_assert(alignof(Pair) == 2);

DLOPS_INLINE __m512bh broadcast(const Pair* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}
DLOPS_INLINE __m512bh load_pairs(const Pair* p) { return (__m512bh)_mm512_loadu_si512(p); }

// Row i of A. kAlong: A's pairs run along k, and its rows are `stride` elements (not pairs) apart; otherwise A is
// [k][i], and its columns are `stride` pairs apart.
template <bool kAlong>
DLOPS_INLINE const Pair* row_of(const Pair* a, int64_t i, int64_t stride) {
  return kAlong ? reinterpret_cast<const Pair*>(reinterpret_cast<const Bfloat*>(a) + i * stride) : a + i;
}

template <int MR, int NR, Into into, bool kAlong>
DLOPS_INLINE void multiply_pairs_tile(int64_t depth, const Pair* a, int64_t stride, const Pair* b,
                                      int64_t b_row, float* c, int64_t c_row, const float* alpha) {
  Vec sum[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) sum[i][j] = zero();
  for (int64_t k = 0; k < depth; k++) {
    __m512bh row[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) row[j] = load_pairs(b + k * b_row + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const __m512bh x = broadcast(row_of<kAlong>(a, i, stride) + (kAlong ? k : k * stride));
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) sum[i][j] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][j], x, row[j]);
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

template <int MR, int NR, Into into, bool kAlong>
DLOPS_INLINE void multiply_pairs_rest(int64_t rows, int64_t depth, const Pair* a, int64_t stride,
                                      const Pair* b, int64_t b_row, float* c, int64_t c_row,
                                      const float* alpha) {
  if constexpr (MR > 0) {
    if (rows == MR)
      return multiply_pairs_tile<MR, NR, into, kAlong>(depth, a, stride, b, b_row, c, c_row, alpha);
    multiply_pairs_rest<MR - 1, NR, into, kAlong>(rows, depth, a, stride, b, b_row, c, c_row, alpha);
  }
}

template <int NR, Into into, bool kAlong>
__attribute__((noinline)) void multiply_pairs(int64_t m, int64_t depth, const Pair* a, int64_t stride,
                                              const Pair* b, int64_t b_row, float* c, int64_t c_row,
                                              const float* alpha = nullptr) {
  constexpr int MR = tile_rows(NR), kRest = MR > 6 ? MR / 2 : MR - 1;
  int64_t i = 0;
  for (; i + MR <= m; i += MR)
    multiply_pairs_tile<MR, NR, into, kAlong>(depth, row_of<kAlong>(a, i, stride), stride, b, b_row,
                                              c + i * c_row, c_row, alpha);
  if (m - i > kRest) {
    multiply_pairs_tile<kRest, NR, into, kAlong>(depth, row_of<kAlong>(a, i, stride), stride, b, b_row,
                                                 c + i * c_row, c_row, alpha);
    i += kRest;
  }
  if (i < m)
    multiply_pairs_rest<kRest, NR, into, kAlong>(m - i, depth, row_of<kAlong>(a, i, stride), stride, b, b_row,
                                                 c + i * c_row, c_row, alpha);
}

}  // namespace
}  // namespace dlops
