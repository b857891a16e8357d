// A square of kLanes x kLanes floats in registers: rows become columns.
#pragma once
#include "simd.h"

namespace dlops {
namespace {

// The words of shuffles, each one instruction. Elements of `width` floats within each `span` floats of the lanes:
// interleave_lo gives (a0 b0 a1 b1 ..) of the lower half of every span, interleave_hi of the upper half.
template <int width, int span, bool hi>
DLOPS_INLINE Vec interleave(Vec a, Vec b) {
  VecI from;
  for (int i = 0; i < kLanes; i++) {
    const int in = i % span, element = in / width;  // an even element comes from a, an odd one from b
    from[i] = i - in + (hi ? span / 2 : 0) + element / 2 * width + in % width + (element % 2 ? kLanes : 0);
  }
  return __builtin_shuffle(a, b, from);
}
// Quads of lanes: (a0 a2 .. b0 b2 ..) or, odd, (a1 a3 .. b1 b3 ..).
template <bool odd>
DLOPS_INLINE Vec every_other_quad(Vec a, Vec b) {
  VecI from;
  for (int i = 0; i < kLanes; i++) from[i] = (2 * (i / 4) + odd) * 4 + i % 4;
  return __builtin_shuffle(a, b, from);
}

// v[i][j] becomes v[j][i]. First the 4x4 squares within quads of lanes, then the quads: rows 4 g + r, quad q -> rows
// 4 q + r, quad g. A step of the second part rotates the bits of the number (g, q) by one.
DLOPS_INLINE void transpose(Vec (&v)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    const Vec a = interleave<1, 4, false>(v[i], v[i + 1]), b = interleave<1, 4, true>(v[i], v[i + 1]);
    const Vec c = interleave<1, 4, false>(v[i + 2], v[i + 3]), d = interleave<1, 4, true>(v[i + 2], v[i + 3]);
    v[i] = interleave<2, 4, false>(a, c);
    v[i + 1] = interleave<2, 4, true>(a, c);
    v[i + 2] = interleave<2, 4, false>(b, d);
    v[i + 3] = interleave<2, 4, true>(b, d);
  }
#pragma GCC unroll 2
  for (int quads = 1; quads < kLanes / 4; quads *= 2) {
    Vec w[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; i++) {
      const int from = i / 4 * 8 + i % 4;  // of the groups 2 g and 2 g + 1
      w[i] = every_other_quad<false>(v[from], v[from + 4]);
      w[i + kLanes / 2] = every_other_quad<true>(v[from], v[from + 4]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) v[i] = w[i];
  }
}

}  // namespace
}  // namespace dlops
