// Products of large float32 matrices, in gemm.h's register tiles. The right operand lies in panels, as wide as a tile:
//
//   C [m, n]  (+)=  A B      multiply_panels     A [m, k] with rows of any stride
//   C [m, n]  (+)=  A^T B    multiply_strips     A [k, m], packed in strips of columns (pack_strips), of any row stride before
//
// C has whole vectors: n is rounded up to kLanes. Products are summed in chunks of kDepthChunk, which are added up in their
// order: an element's bits depend on k alone, not on m, n or who computes it.
#pragma once
#include "gemm.h"

namespace dlops {
namespace {

constexpr int64_t kDepthChunk = 256;
constexpr int kPanel = kTileVectors * kLanes;
constexpr int kStrip = 2 * tile_rows(kTileVectors);  // two tiles: twice the length of a copy in packing

DLOPS_INLINE int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// B [depth, columns], columns a multiple of kLanes. Packed: for every kPanel columns (fewer in the last panel) a matrix
// [depth, width] of its own. Or as it lies, where a product is too small to pay for packing.
struct RightOperand {
  const float* data;
  int64_t depth, columns;
  int64_t stride;  // of rows, as it lies; 0: packed

  int64_t count() const { return (columns + kPanel - 1) / kPanel; }
  int vectors(int64_t panel) const {
    const int64_t rest = columns - panel * kPanel;
    return rest < kPanel ? static_cast<int>(rest / kLanes) : kTileVectors;
  }
  int64_t row(int64_t panel) const { return stride ? stride : vectors(panel) * kLanes; }
  const float* at(int64_t panel, int64_t k) const {
    return data + panel * kPanel * (stride ? 1 : depth) + k * row(panel);
  }
};

// Row k of packed panels [depth, columns]: the n elements of x, times scale if there is one, then zeros.
template <class T>
DLOPS_INLINE void pack_row(const T* x, const float* scale, int64_t n, int64_t k, int64_t depth,
                           int64_t columns, float* packed) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t width = columns - first < kPanel ? columns - first : kPanel;
    float* to = packed + first * depth + k * width;
    for (int64_t j = first; j < first + width; j += kLanes, to += kLanes) {
      const bool whole = j + kLanes <= n;
      const int rest = static_cast<int>(n - j);
      Vec v = whole ? load(x + j) : load_part(x + j, rest);
      if (scale) v = v * (whole ? load(scale + j) : load_part(scale + j, rest));
      store(to, v);
    }
  }
}

template <Into into, bool kAlong>
inline void multiply_panel(int vectors, int64_t m, int64_t depth, const float* a, int64_t stride,
                           const float* b, int64_t b_row, float* c, int64_t c_row) {
  if (vectors == 1) return multiply<1, into, kAlong>(m, depth, a, stride, b, b_row, c, c_row);
  if (vectors == 2) return multiply<2, into, kAlong>(m, depth, a, stride, b, b_row, c, c_row);
  if (vectors == 3) return multiply<3, into, kAlong>(m, depth, a, stride, b, b_row, c, c_row);
  if constexpr (kTileVectors == 4) multiply<4, into, kAlong>(m, depth, a, stride, b, b_row, c, c_row);
}

// Rows [k, k + depth) of a panel of B as it lies, packed.
constexpr int64_t kPanelFloats = kDepthChunk * kPanel;
inline void copy_panel(const RightOperand& b, int64_t panel, int64_t k, int64_t depth, float* packed) {
  const int64_t width = b.vectors(panel) * kLanes;
  for (int64_t i = 0; i < depth; i++, packed += width)
    for (int64_t j = 0; j < width; j += kLanes) store(packed + j, load(b.at(panel, k + i) + j));
}

// C (+)= A B in the panels [first, last). copy: kPanelFloats; where B lies unpacked, a panel's chunk that many rows of A
// multiply is packed into it first.
inline void multiply_panels(int64_t m, const float* a, int64_t a_row, const RightOperand& b, int64_t first,
                            int64_t last, bool add, float* c, int64_t c_row, float* copy) {
  auto chunk = [&](int64_t panel, int64_t k) {
    const int64_t depth = b.depth - k < kDepthChunk ? b.depth - k : kDepthChunk;
    const int vectors = b.vectors(panel);
    const float* right = b.at(panel, k);
    int64_t row = b.row(panel);
    if (b.stride && m > kStrip) {
      copy_panel(b, panel, k, depth, copy);
      right = copy;
      row = vectors * kLanes;
    }
    float* to = c + panel * kPanel;
    if (add || k > 0)
      multiply_panel<Into::add, true>(vectors, m, depth, a + k, a_row, right, row, to, c_row);
    else
      multiply_panel<Into::overwrite, true>(vectors, m, depth, a + k, a_row, right, row, to, c_row);
  };
  if (m <= kStrip) {  // all of A is in L1: read B in its order
    for (int64_t panel = first; panel < last; panel++)
      for (int64_t k = 0; k < b.depth; k += kDepthChunk) chunk(panel, k);
  } else {
    for (int64_t k = 0; k < b.depth; k += kDepthChunk)
      for (int64_t panel = first; panel < last; panel++) chunk(panel, k);
  }
}

// Columns of A [depth, m] as strips [depth, kStrip], one after the other; what a last one lacks is not written.
inline void pack_strips(int64_t depth, int64_t m, const float* a, int64_t a_row, float* strips) {
  const int64_t whole = m / kStrip, rest = m % kStrip;
  for (int64_t k = 0; k < depth; k++, a += a_row) {
    float* to = strips + k * kStrip;
    for (int64_t s = 0; s < whole; s++, to += depth * kStrip)
      memcpy(to, a + s * kStrip, kStrip * sizeof(float));
    for (int64_t i = 0; i < rest; i++) to[i] = a[whole * kStrip + i];
  }
}
constexpr int64_t strip_floats(int64_t depth, int64_t m) {
  return (m + kStrip - 1) / kStrip * kStrip * depth;
}

// C [m, b.columns] (+)= A^T B, for the rows [top, top + height) of A and B. strips: of these rows of A.
inline void multiply_strips(int64_t m, const float* strips, int64_t top, int64_t height,
                            const RightOperand& b, bool add, float* c, int64_t c_row) {
  for (int64_t panel = 0; panel < b.count(); panel++)
    for (int64_t k = 0; k < height; k += kDepthChunk) {
      const int64_t depth = height - k < kDepthChunk ? height - k : kDepthChunk;
      const float* right = b.at(panel, top + k);
      for (int64_t i = 0; i < m; i += kStrip) {
        const int64_t rows = m - i < kStrip ? m - i : kStrip;
        const float* left = strips + i * height + k * kStrip;
        float* to = c + i * c_row + panel * kPanel;
        if (add || k > 0)
          multiply_panel<Into::add, false>(b.vectors(panel), rows, depth, left, kStrip, right, b.row(panel),
                                           to, c_row);
        else
          multiply_panel<Into::overwrite, false>(b.vectors(panel), rows, depth, left, kStrip, right,
                                                 b.row(panel), to, c_row);
      }
    }
}

}  // namespace
}  // namespace dlops
