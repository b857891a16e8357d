// Transformed weights in the order in which the matrix products read them:
//
//   packed [group][xi][panel of filters][channel][lanes of the panel]
//
// A panel is as wide as a register tile of the product (gemm.h); the last one has only as many vectors as it needs, and
// zeros for the filters that are missing. Planes xi are an odd number of cache lines apart: the kIn^2 stores of one weight
// must not meet in one set of the cache.
#pragma once
#include "../cpu/gemm.h"
#include "winograd_image.h"
#include "winograd_transform.h"

namespace dlops {
namespace {

constexpr int kPanel = kTileVectors * kLanes;

// An odd number of cache lines that holds n floats.
DLOPS_INLINE int64_t odd_lines(int64_t n) { return (ceil_div(n, 16) | 1) * 16; }

template <class Tile>
struct PackedWeights {
  explicit PackedWeights(const ConvProblem& p)
      : channels(p.group_channels()),
        filters(p.group_filters()),
        plane(odd_lines(whole_vectors(filters) * channels)) {}
  static constexpr int kPlanes = Tile::kIn * Tile::kIn;
  int64_t floats(int64_t groups) const { return groups * kPlanes * plane; }
  // The weights of the vectors of a panel, [channels][vectors kLanes]. `filter` is where the panel begins.
  int64_t at(int64_t group, int64_t xi, int64_t filter) const {
    return (group * kPlanes + xi) * plane + filter * channels;
  }
  int64_t panel_width(int64_t filter) const { return smaller(kPanel, whole_vectors(filters - filter)); }
  int64_t channels, filters, plane;
};

// w [kLanes filters][kLanes channels][9] of memory in any type and order, as float32; zero where there is none.
// The forward pass reads w [O, C, 9] as it is.
template <class T>
DLOPS_INLINE void stage_weights(const T* w, int64_t filter_stride, int64_t filters, int64_t channels,
                                float (&stage)[kLanes][kLanes * 9]) {
  for (int64_t f = 0; f < kLanes; f++)
    for (int64_t k = 0; k < kLanes * 9; k += kLanes) {
      const int64_t n = f < filters ? larger(smaller(channels * 9 - k, kLanes), 0) : 0;
      const T* from = w + f * filter_stride + k;
      store(stage[f] + k, n == kLanes ? load(from) : n ? load_part(from, static_cast<int>(n)) : zero());
    }
}
// From lanes of (channel, tap) to lanes of filters: turned [kLanes channels * 9][kLanes].
DLOPS_INLINE void turn_weights(const float (&stage)[kLanes][kLanes * 9],
                               float (&turned)[kLanes * 9][kLanes]) {
  for (int64_t k = 0; k < kLanes * 9; k += kLanes) {
    Vec v[kLanes];
#pragma GCC unroll 16
    for (int f = 0; f < kLanes; f++) v[f] = load(stage[f] + k);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) store(turned[k + i], v[i]);
  }
}

// The data pass is a convolution whose filters are w's channels and whose channels are w's filters, rotated by half a turn:
// w'[f, c, k] = w[c, f, 8 - k]. The taps of the filters of a channel c lie side by side, so its turned weights are transposes
// of what is there. `stride` is that of w's filters, so of the channels of w'.
template <class T>
DLOPS_INLINE void turn_mirrored(const T* w, int64_t stride, int64_t filters, int64_t channels,
                                float (&turned)[kLanes * 9][kLanes]) {
  float run[kLanes * 9 + kLanes] = {};  // the last filter's loads reach past its taps
  for (int64_t c = 0; c < channels; c++) {
    for (int64_t k = 0; k < kLanes * 9; k += kLanes) {
      const int64_t n = larger(smaller(filters * 9 - k, kLanes), 0);
      const T* from = w + c * stride + k;
      store(run + k, n == kLanes ? load(from) : n ? load_part(from, static_cast<int>(n)) : zero());
    }
    for (int tap = 0; tap < 9; tap += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int f = 0; f < kLanes; f++) v[f] = load(run + f * 9 + tap);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++)
        if (tap + i < 9) store(turned[c * 9 + 8 - tap - i], v[i]);
    }
  }
}

// G w G^T of one channel's 3x3 weights of kLanes filters, to kIn^2 planes.
template <class Tile>
DLOPS_INLINE void transform_weights(const float* w, float* to, int64_t plane) {
  constexpr int kIn = Tile::kIn;
  Vec columns[3][kIn];
#pragma GCC unroll 3
  for (int x = 0; x < 3; x++) {
    const Vec column[3] = {load(w + x * kLanes), load(w + (3 + x) * kLanes), load(w + (6 + x) * kLanes)};
    Tile::weight(column, columns[x]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; i++) {
    const Vec row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    Vec u[kIn];
    Tile::weight(row, u);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; j++) store(to + (i * kIn + j) * plane, u[j]);
  }
}

// p is the convolution that will run: for the data pass the mirrored problem.
template <class Tile, class T>
__attribute__((noinline)) void pack_weights(const ConvProblem& p, const T* w, bool mirrored, float* packed) {
  const PackedWeights<Tile> layout(p);
  const int64_t channels = layout.channels, filters = layout.filters;
  float stage[kLanes][kLanes * 9], turned[kLanes * 9][kLanes];
  for (int64_t g = 0; g < p.groups; g++, w += channels * filters * 9)
    for (int64_t f = 0; f < filters; f += kLanes) {
      const int64_t panel = f / kPanel * kPanel, width = layout.panel_width(panel);
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t n = smaller(filters - f, kLanes), m = smaller(channels - c, kLanes);
        if (mirrored) {
          turn_mirrored(w + (c * filters + f) * 9, filters * 9, n, m, turned);
        } else {
          stage_weights(w + (f * channels + c) * 9, channels * 9, n, m, stage);
          turn_weights(stage, turned);
        }
        float* to = packed + layout.at(g, 0, panel) + c * width + f - panel;
        for (int64_t i = 0; i < m; i++) transform_weights<Tile>(turned[i * 9], to + i * width, layout.plane);
      }
    }
}

}  // namespace
}  // namespace dlops
