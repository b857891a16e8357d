// A weight [gates * units, depth] as register tiles read it. Units are lanes: a block is kLanes units, a vector is one gate
// of one block, and the vectors lie block by block, [i f g o] of block 0, then of block 1. A strip is as many vectors as a
// tile multiplies at once, [depth][vectors][kLanes]; units past the end are zeros.
//
// A group is what is multiplied and finished together: one block with all its gates, or, where there is one gate only, as
// many blocks as a tile takes.
#pragma once
#include "../cpu/gemm.h"
#include "../cpu/transpose.h"

namespace dlops {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

struct Panels {
  int64_t gates, units, depth;

  constexpr int64_t blocks() const { return ceil_div(units, kLanes); }
  constexpr int64_t vectors() const { return gates * blocks(); }
  constexpr int64_t group_blocks() const { return gates == 1 ? kTileVectors : 1; }
  constexpr int64_t group_vectors() const { return gates * group_blocks(); }  // the last group may have fewer
  constexpr int64_t groups() const { return ceil_div(blocks(), group_blocks()); }
  constexpr int64_t strip_vectors() const {  // a group of 4 vectors is two strips where a tile takes 3
    return group_vectors() <= kTileVectors ? group_vectors() : group_vectors() / 2;
  }
  // Units of a block that exist.
  constexpr int units_of(int64_t block) const {
    return static_cast<int>(lesser(units - block * kLanes, kLanes));
  }
};

// f(first vector, end) for the strips of groups [begin, end).
template <class F>
DLOPS_INLINE void each_strip(const Panels& w, int64_t begin, int64_t end, F f) {
  const int64_t last = lesser(end * w.group_vectors(), w.vectors()), step = w.strip_vectors();
  for (int64_t v = begin * w.group_vectors(); v < last; v += step) f(v, lesser(v + step, last));
}

// kLanes rows of depths [k, k + kLanes), of which `rows` x `depths` exist, become lanes: to[depth][..][kLanes].
template <class T>
DLOPS_INLINE void pack_square(const T* w, int64_t row_stride, int rows, int depths, float* to,
                              int64_t to_row) {
  Vec square[kLanes];
  for (int i = 0; i < kLanes; i++) {
    const T* row = w + i * row_stride;
    square[i] = i >= rows ? zero() : depths == kLanes ? load(row) : load_part(row, depths);
  }
  transpose(square);
  for (int i = 0; i < depths; i++) store(to + i * to_row, square[i]);
}

// Vectors [begin, end) of one strip.
template <class T>
__attribute__((noinline)) void pack_strip(const Panels& w, const T* from, int64_t begin, int64_t end,
                                          float* strip) {
  const int64_t strip_row = (end - begin) * kLanes;
  for (int64_t v = begin; v < end; v++) {
    const int64_t block = v / w.gates, row = v % w.gates * w.units + block * kLanes;
    for (int64_t k = 0; k < w.depth; k += kLanes)
      pack_square(from + row * w.depth + k, w.depth, w.units_of(block),
                  static_cast<int>(lesser(w.depth - k, kLanes)), strip + k * strip_row + (v - begin) * kLanes,
                  strip_row);
  }
}

}  // namespace
}  // namespace dlops
