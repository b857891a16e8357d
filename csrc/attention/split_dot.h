// The two products of the split kernel for bfloat16 by vdpbf16ps, which adds products of pairs to float32 sums: the first
// product takes pairs along d as they lie, the second pairs of keys, whose rows are interleaved in registers.
#pragma once
#include "split_tile.h"

namespace dlops {
namespace {

DLOPS_INLINE Vec dot_pairs(__m512i a, __m512i b, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

struct Dot {
  using Element = Bfloat;
  using Query = Bfloat;
  using Loaded = __m512i;
  using Weight = uint32_t;             // a pair of keys
  static constexpr int kColumns = 32;  // of a unit of V, in two registers
  static constexpr int kQueryPad = 32;
  static constexpr int kUnits = 2, kFewRowsUnits = 4;

  DLOPS_INLINE __m512i load_pairs(const Bfloat* from) { return _mm512_loadu_si512(from); }
  DLOPS_INLINE __m512i load_pairs(const Bfloat* from, int n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), from);
  }

  static void pack_query(const Bfloat* from, int64_t d, Bfloat* to) {
    for (int64_t i = 0; i < d; i += 32)
      _mm512_storeu_si512(to + i, load_pairs(from + i, static_cast<int>(lesser(d - i, 32))));
  }

  DLOPS_INLINE __m512i get_query(const Bfloat* q) { return load_pairs(q); }
  DLOPS_INLINE __m512i get_key(const Bfloat* k) { return load_pairs(k); }
  DLOPS_INLINE __m512i get_key(const Bfloat* k, int n) { return load_pairs(k, n); }
  DLOPS_INLINE Vec multiply(__m512i a, __m512i b, Vec sum) { return dot_pairs(a, b, sum); }

  // A row's n float32 weights become bfloat16 where they lie, rounded to nearest even; one past an odd n is 0.
  static void pack_weights(float* x, int n) {
    for (int t = 0; t < n; t += kLanes) {
      const __m256bh half = _mm512_cvtneps_pbh((__m512)load(x + t));
      memcpy(reinterpret_cast<Bfloat*>(x) + t, &half, sizeof half);
    }
  }
  static const uint32_t* weights(const float* x, int t) {
    return reinterpret_cast<const uint32_t*>(x) + t / 2;
  }

  // C units of `out` [R, C * 32]; a key of weight 0 is not read where `careful`. last: columns of a partial unit.
  // Interleaving works within 128 bits, so the first register of a unit holds columns 0-3, 8-11, 16-19 and 24-27.
  template <int R, int C, bool careful>
  DLOPS_INLINE void columns(const uint32_t* x, const Bfloat* v, int64_t v_row, int n, int last,
                            const float* fade, float* out, int64_t width, Ahead& to_come) {
    Ahead ahead = to_come;
    Vec sum[R][2 * C];
    clear(sum);
    for (int t = 0; t < n; t += 2) {
      const uint32_t pair = x[t / 2];
      if (careful && pair == 0) continue;
      const bool first = !careful || (pair & 0xffffu), second = t + 1 < n && (!careful || pair >> 16);
      const Bfloat* from = v + t * v_row;
      __m512i row[2 * C];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        const __m512i none = _mm512_setzero_si512();
        auto get = [&](const Bfloat* p) { return C == 1 && last ? load_pairs(p, last) : load_pairs(p); };
        const __m512i a = first ? get(from + c * 32) : none, b = second ? get(from + v_row + c * 32) : none;
        row[2 * c] = _mm512_unpacklo_epi16(a, b);
        row[2 * c + 1] = _mm512_unpackhi_epi16(a, b);
      }
      if (ahead.row) Ahead::next<2 * C>(ahead);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const __m512i w = _mm512_set1_epi32(static_cast<int>(x[r * kTile + t / 2]));
#pragma GCC unroll 8
        for (int c = 0; c < 2 * C; c++) sum[r][c] = dot_pairs(w, row[c], sum[r][c]);
      }
    }
    to_come = ahead;
    Widened<Bfloat>::add_faded<R, 2 * C>(sum, fade, out, width);
  }

  // to [dv] = out factor / total, columns in their order again.
  static void store_row(Bfloat* to, const float* out, int64_t dv, float factor, float total) {
    const VecI low = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
    for (int64_t i = 0; i < dv; i += 32) {
      const Vec a = load(out + i), b = load(out + i + 16);
      const Vec unit[2] = {__builtin_shuffle(a, b, low), __builtin_shuffle(a, b, low + 8)};
      for (int64_t c = i; c < dv && c < i + 32; c += kLanes) {
        const Vec y = unit[(c - i) / kLanes] * set1(factor) / set1(total);
        if (dv - c < kLanes)
          store_part(to + c, y, static_cast<int>(dv - c));
        else
          store(to + c, y);
      }
    }
  }
};

}  // namespace
}  // namespace dlops
