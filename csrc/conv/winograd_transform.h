// The small transforms of Winograd's convolution (Lavin and Gray 2016), in one dimension, every lane on its own.
//
//   y = A^T [ (G w) (B^T x) ]          m results y of m + 2 elements x and 3 weights w, in m + 2 products instead of 3 m
//
// In two dimensions each transform is applied to the columns and then to the rows of a tile. The matrices come from
// evaluating two polynomials, multiplying the values and interpolating (Toom 1963, Cook 1966), transposed. At the m + 1
// finite points p_i and at infinity,
//
//   A   row i:  1, p_i, p_i^2, ..                                infinity: 0, .., 0, 1
//   G   row i:  (1, p_i, p_i^2) / prod_{j != i} (p_i - p_j)      infinity: 0, 0, 1
//   B^T row i:  coefficients of prod_{j != i} (t - p_j)          infinity: of prod_j (t - p_j)
//
// Points come in pairs +-p, whose rows share their even and odd parts. F(4x4) takes 0, +-sqrt(1/2), +-sqrt(2): powers stay
// near 1, which makes errors four to five times smaller than the usual 0, +-1, +-2 do. Their squares 1/2 and 2 are exact.
#pragma once
#include "../cpu/simd.h"

namespace dlops {
namespace {

// 4 results of 6 elements: 36 products for 16 results instead of 144.
struct Tile4 {
  static constexpr int kOut = 4, kIn = 6;
  static constexpr double a = 0.70710678118654752440,
                          b = 1.41421356237309504880;  // a^2 = 1/2, b^2 = 2, a b = 1
  static constexpr double ga = -2. / 3,
                          gb = 1. / 6;  // the divisors of G: 2 a^2 (a^2 - b^2) and 2 b^2 (b^2 - a^2)

  // The same matrices by rows, for a kernel that wants one row.
  static constexpr double kImageRows[6][6] = {{1, 0, -2.5, 0, 1, 0},      {0, -2 * a, -2, a, 1, 0},
                                              {0, 2 * a, -2, -a, 1, 0},   {0, -b / 2, -0.5, b, 1, 0},
                                              {0, b / 2, -0.5, -b, 1, 0}, {0, 1, 0, -2.5, 0, 1}};
  static constexpr double kResultColumns[6][4] = {{1, 0, 0, 0},     {1, a, 0.5, a / 2}, {1, -a, 0.5, -a / 2},
                                                  {1, b, 2, 2 * b}, {1, -b, 2, -2 * b}, {0, 0, 0, 1}};
  static constexpr double kWeightRows[6][3] = {
      {1, 0, 0}, {ga, ga * a, ga / 2}, {ga, -ga * a, ga / 2}, {gb, gb * b, 2 * gb}, {gb, -gb * b, 2 * gb},
      {0, 0, 1}};

  // u = B^T d
  DLOPS_INLINE void image(const Vec (&d)[6], Vec (&u)[6]) {
    const Vec half = set1(-0.5f), two = set1(-2.f), middle = set1(-2.5f), pa = set1(float(a)),
              pb = set1(float(b));
    u[0] = fma(middle, d[2], d[0] + d[4]);
    u[5] = fma(middle, d[3], d[1] + d[5]);
    const Vec even = fma(two, d[2], d[4]), odd = pa * fma(two, d[1], d[3]);
    u[1] = even + odd;
    u[2] = even - odd;
    const Vec even2 = fma(half, d[2], d[4]), odd2 = pb * fma(half, d[1], d[3]);
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
  }
  // y = A^T m
  DLOPS_INLINE void result(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec s = m[1] + m[2], t = m[3] + m[4];
    const Vec d = set1(float(a)) * (m[1] - m[2]), e = set1(float(b)) * (m[3] - m[4]);
    y[0] = m[0] + s + t;
    y[1] = d + e;
    y[2] = fma(set1(2.f), t, set1(0.5f) * s);
    y[3] = fma(set1(0.5f), d, fma(set1(2.f), e, m[5]));
  }
  // u = G w
  DLOPS_INLINE void weight(const Vec (&w)[3], Vec (&u)[6]) {
    u[0] = w[0];
    u[5] = w[2];
    const Vec even = fma(set1(float(ga / 2)), w[2], set1(float(ga)) * w[0]), odd = set1(float(ga * a)) * w[1];
    u[1] = even + odd;
    u[2] = even - odd;
    const Vec even2 = fma(set1(float(2 * gb)), w[2], set1(float(gb)) * w[0]),
              odd2 = set1(float(gb * b)) * w[1];
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
  }
  // The adjoints, for the gradient of w. m = A y
  DLOPS_INLINE void result_adjoint(const Vec (&y)[4], Vec (&m)[6]) {
    m[0] = y[0];
    m[5] = y[3];
    const Vec even = fma(set1(0.5f), y[2], y[0]), odd = set1(float(a)) * fma(set1(0.5f), y[3], y[1]);
    m[1] = even + odd;
    m[2] = even - odd;
    const Vec even2 = fma(set1(2.f), y[2], y[0]), odd2 = set1(float(b)) * fma(set1(2.f), y[3], y[1]);
    m[3] = even2 + odd2;
    m[4] = even2 - odd2;
  }
  // w = G^T u
  DLOPS_INLINE void weight_adjoint(const Vec (&u)[6], Vec (&w)[3]) {
    const Vec s = set1(float(ga)) * (u[1] + u[2]), t = set1(float(gb)) * (u[3] + u[4]);
    w[0] = u[0] + s + t;
    w[1] = fma(set1(float(ga * a)), u[1] - u[2], set1(float(gb * b)) * (u[3] - u[4]));
    w[2] = fma(set1(0.5f), s, fma(set1(2.f), t, u[5]));
  }
};

// 2 results of 4 elements, points 0, +-1: 16 products for 4 results instead of 36. The signs of rows 0 and 3 are those
// that need no negation.
struct Tile2 {
  static constexpr int kOut = 2, kIn = 4;

  DLOPS_INLINE void image(const Vec (&d)[4], Vec (&u)[4]) {
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[3] - d[1];
  }
  DLOPS_INLINE void result(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
  DLOPS_INLINE void weight(const Vec (&w)[3], Vec (&u)[4]) {
    const Vec half = set1(0.5f), even = half * (w[0] + w[2]), odd = half * w[1];
    u[0] = w[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = w[2];
  }
};

}  // namespace
}  // namespace dlops
