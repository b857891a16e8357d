// The online softmax of a tile of scores with rows in lanes, S^T [keys][lanes]: every operation is vertical, none
// crosses lanes (Milakov and Gimelshein 2018; Dao 2022).
#pragma once
#include "scores.h"

namespace dlops {
namespace {

// 2^x for x <= 0, with -inf -> 0 and NaN -> NaN: x = n + r, 2^r by a polynomial (minimax with exact values at integers:
// a row's largest weight is exactly 1). Degree 5: 1.9e-7 relative. Degree 4, 3.4e-6, is for weights that are rounded to
// bfloat16 (2e-3) next. Weights below 2^-126 may vanish.
template <int degree>
DLOPS_INLINE Vec exp2_weight(Vec x) {
#if defined(__AVX512F__)  // n = floor(x), r in [0, 1)
  const Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
  Vec p;
  if constexpr (degree == 4) {
    p = fma(set1(0.01355722255f), r, set1(0.05203028953f));
    p = fma(p, r, set1(0.2413800859f));
    p = fma(p, r, set1(0.6930324021f));
  } else {
    p = fma(set1(0.001872995792f), r, set1(0.009005072218f));
    p = fma(p, r, set1(0.05580788621f));
    p = fma(p, r, set1(0.2401627715f));
    p = fma(p, r, set1(0.6931512743f));
  }
  p = fma(p, r, set1(1.f));
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else  // n the nearest integer, by the addition of 1.5 2^23; r in [-1/2, 1/2]; n goes to the exponent
  static_assert(degree == 5, "only the dot product's levels need another, and they have AVX-512");
  const Vec magic = set1(12582912.f);
  x = max(set1(-126.f), x);  // the constant first: NaN passes through
  const Vec t = x + magic;
  const Vec r = x - (t - magic);
  Vec p = fma(set1(0.001330681934f), r, set1(0.009673465261f));
  p = fma(p, r, set1(0.05550551836f));
  p = fma(p, r, set1(0.2402220129f));
  p = fma(p, r, set1(0.6931471827f));
  p = fma(p, r, set1(1.f));
  const VecU bits = as<VecU>(p) + (as<VecU>(t) << 23);
  return as<Vec>(bits & ~as<VecU>(x <= set1(-126.f)));
#endif
}

// What each row carries from tile to tile, in lanes: the largest score, the sum of e^(score - largest), and what the
// sums so far are to be multiplied with since the largest changed.
struct RowState { float *top, *sum, *alpha; };

// Vector j's largest score is `top` now. Returns what to subtract from its scores: top, or 0 where nothing was seen yet
// (-inf - -inf would be NaN).
DLOPS_INLINE Vec raise(Vec top, int j, const RowState& state) {
  const Vec base = select(top == set1(kMinusInf), zero(), top);
  store(state.alpha + j * kLanes, exp2_weight<5>((load(state.top + j * kLanes) - base) * set1(kLog2e)));
  store(state.top + j * kLanes, top);
  return base;
}

// s [keys][NR vectors]: the scores become weights e^(score - top), and the state takes them in.
template <int NR>
DLOPS_INLINE void softmax_tile(int64_t keys, float* s, const RowState& state) {
  Vec top[NR], base[NR], sum[NR];
#pragma GCC unroll 4
  for (int j = 0; j < NR; j++) top[j] = load(state.top + j * kLanes);
  for (int64_t t = 0; t < keys; t++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) top[j] = max(top[j], load(s + (t * NR + j) * kLanes));
#pragma GCC unroll 4
  for (int j = 0; j < NR; j++) {
    base[j] = raise(top[j], j, state);
    sum[j] = zero();
  }
  for (int64_t t = 0; t < keys; t++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      float* at = s + (t * NR + j) * kLanes;
      const Vec p = exp2_weight<5>((load(at) - base[j]) * set1(kLog2e));
      sum[j] = sum[j] + p;
      store(at, p);
    }
#pragma GCC unroll 4
  for (int j = 0; j < NR; j++)
    store(state.sum + j * kLanes, fma(load(state.sum + j * kLanes), load(state.alpha + j * kLanes), sum[j]));
}

}  // namespace
}  // namespace dlops
