// The two products of the split kernel for keys and values of element type T, widened to float32 in registers:
//
//   x [rows, keys] = q [rows, d] . k [keys, d]        out [rows, dv] = fade out + x [rows, keys] v [keys, dv]
//
// Keys and values are read as they lie: the first product runs along d and adds up lanes at its end, the second
// broadcasts weights. Both take up to four rows per load of a key or value.
#pragma once
#include "split_block.h"

namespace dlops {
namespace {

constexpr int kTogether = 4;  // rows that share a load
// Keys between two additions to `out`: their values stay in the L1 for the next rows, and short sums round less.
constexpr int kSumKeys = 64;

// Rows that are prefetched in the order of memory while a product reads as many bytes of others: the prefetchers of the
// hardware follow neither the products' order of lines nor their change between K and V. Null: none.
struct Ahead {
  const char* row = nullptr;
  int64_t stride = 0, bytes = 0;  // of a row
  int64_t at = 0;

  template <int lines>
  DLOPS_INLINE void next(Ahead& a) {
#pragma GCC unroll 8
    for (int i = 0; i < lines; i++) __builtin_prefetch(a.row + a.at + 64 * i, 0, 2);
    a.at += 64 * lines;
    if (a.at >= a.bytes) {
      a.at = 0;
      a.row += a.stride;
    }
  }
};
constexpr int lines_of(int64_t bytes) { return static_cast<int>(bytes < 64 ? 1 : bytes / 64); }

template <int n>
DLOPS_INLINE void clear(Vec (&v)[n]) {
#pragma GCC unroll 16
  for (int i = 0; i < n; i++) v[i] = zero();
}
template <int m, int n>
DLOPS_INLINE void clear(Vec (&v)[m][n]) {
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) clear(v[i]);
}

// The first n (0 < n < kLanes) elements; nothing beyond them is read.
#if defined(__AVX512F__)
DLOPS_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
DLOPS_INLINE Vec load_first(const float* p, int n) { return (Vec)_mm512_maskz_loadu_ps(first_lanes(n), p); }
DLOPS_INLINE Vec load_first(const Half* p, int n) {
  return (Vec)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
DLOPS_INLINE Vec load_first(const Bfloat* p, int n) {
  return as<Vec>((VecU)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)) << 16);
}
#else
template <class T>
DLOPS_INLINE Vec load_first(const T* p, int n) {
  return load_part(p, n);
}
#endif

// Lane i is the sum of the lanes of v[i]. Each step adds halves of two vectors into one: what a vector keeps in place is
// blended, which any port does, and what moves is shuffled.
DLOPS_INLINE Vec add_lanes(Vec (&v)[kLanes]) {
#if defined(__AVX512F__)
  auto halves = [](Vec a, Vec b) {  // within 128 bits: a0 + a2, a1 + a3, b0 + b2, b1 + b3
    const __m512d x = (__m512d)a, y = (__m512d)b;
    return (Vec)_mm512_mask_blend_pd(0xaa, x, y) + (Vec)_mm512_shuffle_pd(x, y, 0x55);
  };
  auto pairs = [](Vec a, Vec b) {  // a0 + a1, b0 + b1, a2 + a3, b2 + b3
    const __m512 x = (__m512)a, y = (__m512)b;
    return (Vec)_mm512_mask_blend_ps(0xaaaa, x, y) +
           (Vec)_mm512_permute_ps(_mm512_mask_blend_ps(0xaaaa, y, x), 0xb1);
  };
  auto far_halves = [](Vec a, Vec b) {
    const __m512 x = (__m512)a, y = (__m512)b;
    return (Vec)_mm512_mask_blend_ps(0xff00, x, y) + (Vec)_mm512_shuffle_f32x4(x, y, 0x4e);
  };
  auto far_pairs = [](Vec a, Vec b) {
    const __m512 x = (__m512)a, y = (__m512)b;
    return (Vec)_mm512_shuffle_f32x4(x, y, 0x88) + (Vec)_mm512_shuffle_f32x4(x, y, 0xdd);
  };
  Vec four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    four[i] = pairs(halves(v[4 * i], v[4 * i + 2]), halves(v[4 * i + 1], v[4 * i + 3]));
  return far_pairs(far_halves(four[0], four[1]), far_halves(four[2], four[3]));
#elif defined(__AVX2__)
  auto pair = [](Vec a, Vec b) { return (Vec)_mm256_hadd_ps((__m256)a, (__m256)b); };
  const Vec low = pair(pair(v[0], v[1]), pair(v[2], v[3])), high = pair(pair(v[4], v[5]), pair(v[6], v[7]));
  return (Vec)_mm256_permute2f128_ps((__m256)low, (__m256)high, 0x20) +
         (Vec)_mm256_permute2f128_ps((__m256)low, (__m256)high, 0x31);
#else
  const Vec even = zip_lo(v[0], v[2]) + zip_hi(v[0], v[2]), odd = zip_lo(v[1], v[3]) + zip_hi(v[1], v[3]);
  return zip_lo(even, odd) + zip_hi(even, odd);
#endif
}

// Keys that fill a vector of sums with R rows, and how many of them are read side by side.
template <int R>
constexpr int kDotKeys = kLanes / (R == 3 ? 4 : R);
template <int R>
constexpr int kDotPointers = kDotKeys<R> < 4 ? kDotKeys<R> : 4;

// Stores the sums of R rows with kDotKeys keys.
template <int R>
DLOPS_INLINE void store_dots(Vec (&sum)[kLanes], float* x) {
  constexpr int J = kDotKeys<R>;
  float lane[kLanes];
  store(lane, add_lanes(sum));
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) memcpy(x + r * kTile, lane + r * J, J * sizeof(float));
}

// sum[r * kDotKeys + g + j] = the products of row r with key t + g + j, still spread over lanes; g = Begin, Begin + P, ...
// The last key stands in for those past n.
template <class E, int R, int Begin>
DLOPS_INLINE void add_dots(Vec (&sum)[kLanes], const typename E::Query* q, int64_t q_row,
                           const typename E::Element* k, int64_t k_row, int t, int n, int64_t d,
                           Ahead& ahead) {
  constexpr int J = kDotKeys<R>, P = kDotPointers<R>;
  constexpr int kLines = lines_of(P * E::kQueryPad * sizeof(typename E::Element));
  const typename E::Element* key[P];
  typename E::Loaded loaded[P];
  Vec part[R][P];
  clear(part);
#pragma GCC unroll 4
  for (int j = 0; j < P; j++) key[j] = k + (t + Begin + j < n ? t + Begin + j : n - 1) * k_row;
  int64_t i = 0;
  for (; i + E::kQueryPad <= d; i += E::kQueryPad) {
    if (ahead.row) {
      Ahead::next<kLines>(ahead);
#pragma GCC unroll 4
      for (int j = 0; j < P; j++) __builtin_prefetch(key[j] + 2 * P * k_row + i, 0, 3);  // from the L2
    }
#pragma GCC unroll 4
    for (int j = 0; j < P; j++) loaded[j] = E::get_key(key[j] + i);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < P; j++)
        part[r][j] = E::multiply(E::get_query(q + r * q_row + i), loaded[j], part[r][j]);
  }
  if (i < d) {
#pragma GCC unroll 4
    for (int j = 0; j < P; j++) loaded[j] = E::get_key(key[j] + i, static_cast<int>(d - i));
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < P; j++)
        part[r][j] = E::multiply(E::get_query(q + r * q_row + i), loaded[j], part[r][j]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < P; j++) sum[r * J + Begin + j] = part[r][j];
  if constexpr (Begin + P < J) add_dots<E, R, Begin + P>(sum, q, q_row, k, k_row, t, n, d, ahead);
}

// x [R, n] = q [R, q_row] . k [n, d] with row stride k_row.
template <class E, int R>
DLOPS_LEAF void dots(const typename E::Query* q, int64_t q_row, const typename E::Element* k, int64_t k_row,
                     int n, int64_t d, float* x, Ahead& to_come) {
  Ahead ahead = to_come;
  for (int t = 0; t < n; t += kDotKeys<R>) {
    Vec sum[kLanes];
    clear(sum);
    add_dots<E, R, 0>(sum, q, q_row, k, k_row, t, n, d, ahead);
    store_dots<R>(sum, x + t);
  }
  to_come = ahead;
}

template <class E>
struct Widened {
  using Element = E;
  using Query = float;
  using Loaded = Vec;
  static constexpr int kColumns = kLanes;  // of a unit of V, in a register
  static constexpr int kQueryPad = kLanes;
  // Units per load of weights: as many sums as registers allow, and enough that they need not wait for each other.
  static constexpr int kUnits = kLanes == 16 ? 4 : 2, kFewRowsUnits = kLanes == 16 ? 8 : 4;

  static void pack_query(const Element* from, int64_t d, float* to) {
    for (int64_t i = 0; i < round_up(d, kLanes); i += kLanes)
      store(to + i, d - i < kLanes ? load_first(from + i, static_cast<int>(d - i)) : load(from + i));
  }

  // Loaded once for all rows; nothing beyond n elements is read.
  DLOPS_INLINE Vec get_query(const float* q) { return load(q); }
  DLOPS_INLINE Vec get_key(const Element* k) { return load(k); }
  DLOPS_INLINE Vec get_key(const Element* k, int n) { return load_first(k, n); }
  DLOPS_INLINE Vec multiply(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }

  // The weights of a row as the second product wants them.
  using Weight = float;
  static void pack_weights(float*, int) {}
  static const float* weights(const float* x, int t) { return x + t; }

  // C vectors of `out` [R, C kLanes]; a key of weight 0 is not read where `careful`. last: columns of a partial vector.
  template <int R, int C, bool careful>
  DLOPS_INLINE void columns(const float* x, const Element* v, int64_t v_row, int n, int last,
                            const float* fade, float* out, int64_t width, Ahead& to_come) {
    Ahead ahead = to_come;
    Vec sum[R][C];
    clear(sum);
    for (int t = 0; t < n; t++) {
      if (careful && x[t] == 0) continue;
      Vec row[C];
      const Element* from = v + t * v_row;
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) row[c] = C == 1 && last ? load_first(from, last) : load(from + c * kLanes);
      if (ahead.row) Ahead::next<lines_of(C * kColumns * sizeof(Element))>(ahead);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Vec w = set1(x[r * kTile + t]);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[r][c] = fma(w, row[c], sum[r][c]);
      }
    }
    to_come = ahead;
    add_faded<R, C>(sum, fade, out, width);
  }

  template <int R, int C>
  DLOPS_INLINE void add_faded(Vec (&sum)[R][C], const float* fade, float* out, int64_t width) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        float* to = out + r * width + c * kLanes;
        store(to, fma(set1(fade[r]), load(to), sum[r][c]));
      }
  }

  // to [dv] = out factor / total
  static void store_row(Element* to, const float* out, int64_t dv, float factor, float total) {
    for (int64_t i = 0; i < dv; i += kLanes) {
      const Vec y = load(out + i) * set1(factor) / set1(total);
      if (dv - i < kLanes)
        store_part(to + i, y, static_cast<int>(dv - i));
      else
        store(to + i, y);
    }
  }
};

}  // namespace
}  // namespace dlops
