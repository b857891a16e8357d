// exp2, exp, log, sigmoid, SiLU, tanh, sin and cos of a float vector: range reduction and a minimax polynomial, in fma.
// Every level gives the same bits. The measured errors stand in README.md of this folder; tests/test_math.py measures them.
// Arguments outside a function's range saturate; NaN stays NaN.
#pragma once
#include "lanes.h"

namespace dlops {
namespace {

// 2^x. x is clamped to [-126, 127]; NaN stays NaN. x = n + r, n the nearest integer (by the addition of 1.5 2^23, whose
// unit in the last place is 1), r in [-1/2, 1/2]; 2^r by a polynomial of degree 6 with p(0) = 1; n goes to the exponent.
DLOPS_INLINE Vec exp2(Vec x) {
  const Vec magic = set1(12582912.f);
  x = min(set1(127.f), max(set1(-126.f), x));  // the constants first: NaN passes through
  Vec t = x + magic;
  Vec r = x - (t - magic);
  Vec p = set1(1.535336196e-04f);
  p = fma(p, r, set1(1.339887502e-03f));
  p = fma(p, r, set1(9.618436918e-03f));
  p = fma(p, r, set1(5.550332367e-02f));
  p = fma(p, r, set1(2.402264774e-01f));
  p = fma(p, r, set1(6.931471825e-01f));
  p = fma(p, r, set1(1.f));
  return as<Vec>(as<VecU>(p) +
                 (as<VecU>(t) << 23));  // the low bits of t are n; magic's own bits leave at the top
}

// e^x: x log2(e) in two parts, or the error of the product would be multiplied by x.
DLOPS_INLINE Vec exp(Vec x) {
  const Vec magic = set1(12582912.f);
  x = x < set1(-87.3f) ? set1(-87.3f) : x;
  x = x > set1(88.f) ? set1(88.f) : x;
  Vec t = fma(x, set1(1.44269504f), magic);
  Vec n = t - magic;
  Vec r = fma(n, set1(-0.693359375f), x);  // exact: 0.693359375 has 9 bits
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.f / 5040.f);
  p = fma(p, r, set1(1.f / 720.f));
  p = fma(p, r, set1(1.f / 120.f));
  p = fma(p, r, set1(1.f / 24.f));
  p = fma(p, r, set1(1.f / 6.f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.f));
  p = fma(p, r, set1(1.f));
  return as<Vec>(as<VecU>(p) + (as<VecU>(t) << 23));
}

// Natural logarithm of a positive normal number.
DLOPS_INLINE Vec log(Vec x) { return philox::log_unit<Lanes>(x); }

DLOPS_INLINE Vec sigmoid(Vec x) { return set1(1.f) / (set1(1.f) + exp2(x * set1(-1.44269504f))); }
DLOPS_INLINE Vec silu(Vec x) { return x / (set1(1.f) + exp2(x * set1(-1.44269504f))); }

// |x| < 0.625: x + x^3 q(x^2), q of degree 4; beyond, 1 - 2 / (e^2x + 1), with the sign put back.
DLOPS_INLINE Vec tanh(Vec x) {
  Vec a = abs(x), y = x * x;
  Vec q = set1(-5.704985932e-03f);
  q = fma(q, y, set1(2.063908614e-02f));
  q = fma(q, y, set1(-5.373971537e-02f));
  q = fma(q, y, set1(1.333144158e-01f));
  q = fma(q, y, set1(-3.333328068e-01f));
  Vec near = fma(x * y, q, x);
  Vec far = set1(1.f) - set1(2.f) / (exp(a + a) + set1(1.f));
  far = as<Vec>(as<VecI>(far) | (as<VecI>(x) & static_cast<int32_t>(0x80000000)));
  return select(a < set1(0.625f), near, far);
}

// sin and cos of x radians, |x| <= 8192: quarter turns removed with pi/2 in three parts (Cody and Waite 1980), then the
// polynomials of csrc/philox.h on the rest as a fraction of a turn.
DLOPS_INLINE void sincos(Vec x, Vec& sine, Vec& cosine) {
  const Vec magic = set1(12582912.f);
  Vec t = fma(x, set1(0.636619772f), magic);
  Vec n = t - magic;
  Vec r = fma(n, set1(-1.5703125f), x);
  r = fma(n, set1(-4.837512969970703125e-4f), r);
  r = fma(n, set1(-7.549790126404332e-8f), r);  // r in [-pi/4, pi/4]
  Vec y = r * r;
  Vec s = set1(-1.9515295891e-4f);
  s = fma(s, y, set1(8.3321608736e-3f));
  s = fma(s, y, set1(-1.6666654611e-1f));
  s = fma(s * y, r, r);
  Vec c = set1(2.443315711809948e-5f);
  c = fma(c, y, set1(-1.388731625493765e-3f));
  c = fma(c, y, set1(4.166664568298827e-2f));
  c = fma(y * y, c, fma(y, set1(-0.5f), set1(1.f)));
  VecU quarter = as<VecU>(t);
  VecI odd = as<VecI>(quarter << 31) < 0;
  Vec a = select(odd, c, s), d = select(odd, s, c);
  sine = as<Vec>(as<VecU>(a) ^ (quarter >> 1 << 31));
  cosine = as<Vec>(as<VecU>(d) ^ ((quarter + 1u) >> 1 << 31));
}

}  // namespace
}  // namespace dlops
