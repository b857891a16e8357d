// Products of bfloat16 rows and weights with float32 sums: a word is a pair of neighbours along the depth, as vdpbf16ps takes
// it. h is rounded to bfloat16 before it is multiplied.
#pragma once
#include "../attention/gemm_dot.h"
#include "product.h"

namespace dlops {
namespace {

struct BfloatPairs {
  using Element = Bfloat;
  static constexpr int kElements = 2;
  static constexpr bool kRounds = true;

  // The pair at the end of a row of odd length would reach into the next.
  static bool takes(const RecurrenceProblem& p) { return p.input % 2 == 0; }

  // [depth / 2][vectors][kLanes] of pairs; the last one's second element may be a zero.
  static void pack(const Panels& w, Dtype, const void* from, int64_t first, int64_t last, float* strip) {
    const int64_t strip_row = (last - first) * kLanes;
    for (int64_t v = first; v < last; v++) {
      const int64_t block = v / w.gates, row = v % w.gates * w.units + block * kLanes;
      for (int64_t k = 0; k < w.depth; k += 2 * kLanes)
        pack_pairs(static_cast<const Bfloat*>(from) + row * w.depth + k, w.depth, w.units_of(block),
                   lesser(w.depth - k, 2 * kLanes), strip + k / 2 * strip_row + (v - first) * kLanes,
                   strip_row);
    }
  }

  template <int NR, Into into>
  static void multiply(Rows<Bfloat> a, int64_t depth, const float* strip, float* to, int64_t row) {
    multiply_pairs<NR, into, true>(a.count, depth, reinterpret_cast<const Pair*>(a.data), a.stride,
                                   reinterpret_cast<const Pair*>(strip), NR * kLanes, to, row);
  }
  __attribute__((always_inline)) static Vec add_product(const Bfloat* a, int64_t k, const float* weights,
                                                        Vec sum) {
    const __m512bh pair = broadcast(reinterpret_cast<const Pair*>(a) + k);
    return (Vec)_mm512_dpbf16_ps((__m512)sum, pair, load_pairs(reinterpret_cast<const Pair*>(weights)));
  }

 private:
  // kLanes rows, of which `rows` exist, of at most 2 kLanes elements become lanes.
  static void pack_pairs(const Bfloat* w, int64_t row_stride, int rows, int64_t elements, float* to,
                         int64_t to_row) {
    Vec square[kLanes];
    for (int i = 0; i < kLanes; i++) {
      square[i] = zero();
      if (i < rows) memcpy(&square[i], w + i * row_stride, static_cast<size_t>(elements) * sizeof(Bfloat));
    }
    transpose(square);
    for (int64_t i = 0; i < ceil_div(elements, 2); i++) store(to + i * to_row, square[i]);
  }
};
using DotProduct = PanelProduct<BfloatPairs>;

}  // namespace
}  // namespace dlops
