// A [rows, depth] times the packed weight of some groups (pack.h). Sums run over chunks of 256 words (see PanelProduct) that are
// added up: the order depends on depth alone, and the error of a long sum is that of a short one.
#pragma once
#include "pack.h"
#include "params.h"

namespace dlops {
namespace {

constexpr int64_t kDepthChunk = 256;

template <class Element>
struct Rows {
  const Element* data;
  int64_t count, stride;
};

// Products of some groups: [groups][rows][group_vectors][kLanes].
struct Slab {
  float* data;
  int64_t group, row;  // strides

  Slab(float* data, const Panels& w, int64_t rows)
      : data(data), group(rows * w.group_vectors() * kLanes), row(w.group_vectors() * kLanes) {}
  // The same products without the first groups and rows.
  Slab from(int64_t groups, int64_t rows) const {
    Slab s = *this;
    s.data += groups * group + rows * row;
    return s;
  }
  // Row 0 of a vector, counted from the slab's first group.
  float* vector(int64_t v, int64_t per_group) const {
    return data + v / per_group * group + v % per_group * kLanes;
  }
};

// What the forward pass asks of products. Words says what a row and a weight are made of: `Element`s, kElements of them
// along the depth to a 32-bit word.
template <class Words>
struct PanelProduct : Words {
  using Element = typename Words::Element;

  static constexpr int64_t words(const Panels& w) { return ceil_div(w.depth, Words::kElements); }
  static constexpr int64_t packed_floats(const Panels& w) { return w.vectors() * words(w) * kLanes; }

  static void pack(const Panels& w, Dtype dtype, const void* from, int64_t begin, int64_t end,
                   float* packed) {
    each_strip(w, begin, end, [&](int64_t first, int64_t last) {
      Words::pack(w, dtype, from, first, last, packed + first * words(w) * kLanes);
    });
  }

  // Groups [begin, end); out begins with group `begin`.
  static void multiply(const Panels& w, const float* packed, int64_t begin, int64_t end, Rows<Element> a,
                       const Slab& out) {
    const int64_t origin = begin * w.group_vectors();
    int64_t done = origin;
    if (a.count == 1) done += multiply_row(w, packed, begin, end, a.data, out);
    each_strip(w, begin, end, [&](int64_t first, int64_t last) {
      if (first < done) return;
      const float* strip = packed + first * words(w) * kLanes;
      float* to = out.vector(first - origin, w.group_vectors());
      if (last - first == 1) multiply_strip<1>(a, words(w), strip, to, out.row);
      if (last - first == 2) multiply_strip<2>(a, words(w), strip, to, out.row);
      if (last - first == 3) multiply_strip<3>(a, words(w), strip, to, out.row);
      if constexpr (kTileVectors == 4)
        if (last - first == 4) multiply_strip<4>(a, words(w), strip, to, out.row);
    });
  }

 private:
  template <int NR>
  static void multiply_strip(Rows<Element> a, int64_t depth, const float* strip, float* to, int64_t row) {
    for (int64_t k = 0; k < depth; k += kDepthChunk) {
      const Rows<Element> part{a.data + k * Words::kElements, a.count, a.stride};
      const int64_t chunk = lesser(depth - k, kDepthChunk);
      if (k == 0)
        Words::template multiply<NR, Into::overwrite>(part, chunk, strip, to, row);
      else
        Words::template multiply<NR, Into::add>(part, chunk, strip + k * NR * kLanes, to, row);
    }
  }

  // One row meets a weight once, so it waits for memory and for its few sums: two strips at a time. Returns how many vectors
  // are done.
  static int64_t multiply_row(const Panels& w, const float* packed, int64_t begin, int64_t end,
                              const Element* a, const Slab& out) {
    const int64_t origin = begin * w.group_vectors(), step = w.strip_vectors();
    const int64_t vectors = lesser(end * w.group_vectors(), w.vectors()) - origin;
    int64_t v = 0;
    for (; v + 2 * step <= vectors; v += 2 * step) {
      const float* strip = packed + (origin + v) * words(w) * kLanes;
      float *first = out.vector(v, w.group_vectors()), *second = out.vector(v + step, w.group_vectors());
      if (step == 2) multiply_two<2>(a, words(w), strip, first, second);
      if (step == 3) multiply_two<3>(a, words(w), strip, first, second);
      if (step == 4) multiply_two<4>(a, words(w), strip, first, second);
    }
    return v;
  }

  template <int NR>
  static void multiply_two(const Element* a, int64_t depth, const float* strip, float* first, float* second) {
    for (int64_t begin = 0; begin < depth; begin += kDepthChunk) {
      const int64_t end = lesser(begin + kDepthChunk, depth);
      Vec sum[2][NR] = {};
      for (int64_t k = begin; k < end; k++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
#pragma GCC unroll 4
          for (int j = 0; j < NR; j++)
            sum[i][j] = Words::add_product(a, k, strip + ((i * depth + k) * NR + j) * kLanes, sum[i][j]);
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < NR; j++) {
          float* to = (i ? second : first) + j * kLanes;
          store(to, begin ? load(to) + sum[i][j] : sum[i][j]);
        }
    }
  }
};

// float32, and half types widened.
struct FloatWords {
  using Element = float;
  static constexpr int kElements = 1;
  static constexpr bool kRounds = false;  // h, to an element

  // Whether x may be multiplied where it lies.
  static bool takes(const RecurrenceProblem& p) { return p.dtype == Dtype::f32; }

  static void pack(const Panels& w, Dtype dtype, const void* from, int64_t first, int64_t last,
                   float* strip) {
    with_dtype(dtype, [&](const auto* type) {
      pack_strip(w, static_cast<decltype(type)>(from), first, last, strip);
    });
  }
  template <int NR, Into into>
  static void multiply(Rows<float> a, int64_t depth, const float* strip, float* to, int64_t row) {
    dlops::multiply<NR, into, true>(a.count, depth, a.data, a.stride, strip, NR * kLanes, to, row);
  }
  // sum + word k of a times a vector of weights.
  __attribute__((always_inline)) static Vec add_product(const float* a, int64_t k, const float* weights,
                                                        Vec sum) {
    return fma(set1(a[k]), load(weights), sum);
  }
};
using FloatProduct = PanelProduct<FloatWords>;

}  // namespace
}  // namespace dlops
