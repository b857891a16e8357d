// The gradient of 3x3 weights, stride 1, by the adjoint of F(4x4, 3x3):
//
//   dw = G^T [ sum over tiles of (B^T x B) (A dy A^T) ] G        elementwise in xi = (i, j), a product over tiles for each xi
//
// A chunk is some rows i of the 36 xi, a group and a range of filters: it makes these rows of the transformed x and dy,
// adds up six products for each over all tiles, in blocks that stay near, and folds j with G. A second pass folds i. No
// sum is shared between chunks, so the result does not depend on how many there are.
#pragma once
#include <type_traits>

#include "../cpu/gemm.h"
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "winograd_pack.h"

namespace dlops {
namespace {

struct WinogradWeightPlan {
  explicit WinogradWeightPlan(const ConvProblem& p)
      : channels(p.group_channels()),
        filters(p.group_filters()),
        tiling(p.batch, p.out[1], p.out[2], Tile4::kOut) {
    segments = larger(smaller(kMostTiles / tiling.tiles, tiling.count), 1);
    // Threads share out rows, and then filters: every chunk reads all of x.
    rows = p.threads == 1 ? 6 : p.threads == 2 ? 3 : 1;
    const int64_t wanted = p.threads == 1 ? 1 : larger(filters / kFewestFilters, 1);
    range = smaller(ceil_div(ceil_div(filters, kPanel), wanted) * kPanel, whole_vectors(filters));
    ranges = ceil_div(filters, range);
    chunks = 6 / rows * p.groups * ranges;
    v_row = odd_lines(whole_vectors(channels));
    d_row = odd_lines(range);
    v_plane = odd_lines(segments * tiling.tiles * v_row);
    d_plane = odd_lines(segments * tiling.tiles * d_row);
    sum_plane = odd_lines(channels * range);
    fold_row = whole_vectors(filters);
  }
  static constexpr int64_t kMostTiles = 112, kFewestFilters = 128;

  int64_t strip_floats() const { return rows * strip_pitch(tiling.tiles, Tile4::kOut, Tile4::kIn) * kLanes; }
  int64_t chunk_floats() const { return rows * 6 * (v_plane + d_plane + sum_plane) + strip_floats(); }
  // Where the sums of chunks meet: [group][i][3][channels][filters]
  int64_t folded(int64_t group, int64_t i, int64_t x) const {
    return ((group * 6 + i) * 3 + x) * channels * fold_row;
  }
  int64_t channels, filters;  // of a group
  Tiling tiling;
  int64_t segments;             // of a block
  int64_t rows, range, ranges;  // rows and filters of a chunk; ranges of a group
  int64_t chunks, v_row, d_row, v_plane, d_plane, sum_plane, fold_row;
};

// Rows of a vertical transform, each a sum of kRead rows: the same arithmetic whichever rows a chunk has.
template <int kRows, int kRead>
struct SomeRows {
  SomeRows(const double (&matrix)[6][kRead], int64_t first) {
    for (int i = 0; i < kRows; i++)
      for (int r = 0; r < kRead; r++) factor[i][r] = static_cast<float>(matrix[first + i][r]);
  }
  DLOPS_INLINE void sum(const SomeRows& rows, const Vec (&d)[kRead], Vec (&u)[kRows]) {
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++) {
      u[i] = set1(rows.factor[i][0]) * d[0];
#pragma GCC unroll 6
      for (int r = 1; r < kRead; r++) u[i] = fma(set1(rows.factor[i][r]), d[r], u[i]);
    }
  }
  float factor[kRows][kRead];
};

// sums [channels][range] (+)= V^T [channels, tiles] D [tiles, filters], for whole vectors of filters.
template <Into into>
DLOPS_INLINE void add_products(const WinogradWeightPlan& plan, int64_t tiles, int64_t filters, const float* v,
                               const float* d, float* sums) {
  const auto panel = [&]<int NR>(std::integral_constant<int, NR>, int64_t f) {
    multiply<NR, into, false>(plan.channels, tiles, v, plan.v_row, d + f, plan.d_row, sums + f, plan.range);
  };
  const int64_t end = whole_vectors(filters);
  for (int64_t f = 0; f < end; f += kPanel) switch (smaller(end - f, kPanel) / kLanes) {
      case 1: panel(std::integral_constant<int, 1>(), f); break;
      case 2: panel(std::integral_constant<int, 2>(), f); break;
      case 3: panel(std::integral_constant<int, 3>(), f); break;
      case 4: panel(std::integral_constant<int, kTileVectors>(), f);
    }
}

template <class T>
Image<T> weight_pass_gradient(const ConvWeightParams& p, int64_t first, int64_t filters) {
  return {static_cast<const T*>(p.dy),
          p.batch * p.filters * p.out_pixels(),
          p.filters,
          first,
          filters,
          p.out[1],
          p.out[2],
          0,
          0,
          p.out[1],
          p.out[2],
          PaddingMode::zeros,
          p.channels_last};
}

template <int kRows, class T>
void winograd_weight_chunk(const ConvWeightParams& p, const WinogradWeightPlan& plan, int64_t chunk,
                           float* folded) {
  const int64_t part = chunk % plan.ranges, i = chunk / plan.ranges % (6 / kRows) * kRows,
                group = chunk / plan.ranges / (6 / kRows);
  const int64_t filter = part * plan.range, filters = smaller(plan.range, plan.filters - filter);

  const cpu::Scratch scratch(static_cast<size_t>(plan.chunk_floats()) * sizeof(float));
  const Planes v{scratch.floats(), plan.v_row, plan.v_plane};
  const Planes d{v.data + kRows * 6 * v.plane, plan.d_row, plan.d_plane};
  float *sums = d.data + kRows * 6 * d.plane, *strip = sums + kRows * 6 * plan.sum_plane;

  const Image<T> x = source_image<T>(p, p.x, group),
                 dy = weight_pass_gradient<T>(p, group * plan.filters + filter, filters);
  const SomeRows<kRows, 6> image_rows(Tile4::kImageRows, i);
  const SomeRows<kRows, 4> gradient_rows(Tile4::kResultColumns, i);
  for (int64_t first = 0; first < plan.tiling.count; first += plan.segments) {
    const int64_t count = smaller(plan.segments, plan.tiling.count - first),
                  tiles = count * plan.tiling.tiles;
    transform_tiles<4, 6, kRows, 6>(
        x, plan.tiling, first, count, v, strip,
        [&](const Vec(&a)[6], Vec(&u)[kRows]) { SomeRows<kRows, 6>::sum(image_rows, a, u); },
        [](const Vec(&a)[6], Vec(&u)[6]) { Tile4::image(a, u); });
    transform_tiles<4, 4, kRows, 6>(
        dy, plan.tiling, first, count, d, strip,
        [&](const Vec(&a)[4], Vec(&u)[kRows]) { SomeRows<kRows, 4>::sum(gradient_rows, a, u); },
        [](const Vec(&a)[4], Vec(&u)[6]) { Tile4::result_adjoint(a, u); });
    for (int j = 0; j < kRows * 6; j++) {
      const float *vj = v.data + j * v.plane, *dj = d.data + j * d.plane;
      if (first == 0)
        add_products<Into::overwrite>(plan, tiles, filters, vj, dj, sums + j * plan.sum_plane);
      else
        add_products<Into::add>(plan, tiles, filters, vj, dj, sums + j * plan.sum_plane);
    }
  }

  for (int64_t r = 0; r < kRows; r++)
    for (int64_t c = 0; c < plan.channels; c++)
      for (int64_t f = 0; f < filters; f += kLanes) {
        Vec u[6], w[3];
        for (int j = 0; j < 6; j++) u[j] = load(sums + (r * 6 + j) * plan.sum_plane + c * plan.range + f);
        Tile4::weight_adjoint(u, w);
        for (int k = 0; k < 3; k++)
          store(folded + plan.folded(group, i + r, k) + c * plan.fold_row + filter + f, w[k]);
      }
}

// dw of kLanes channels from `channel` on, and kLanes filters: folds i, turns lanes of filters into runs of (channel, tap).
template <class T>
void fold_weights(const WinogradWeightPlan& plan, const float* folded, int64_t group, int64_t channel,
                  int64_t filter, T* dw) {
  const int64_t filters = smaller(kLanes, plan.filters - filter),
                channels = smaller(kLanes, plan.channels - channel);
  float turned[kLanes * 9][kLanes], run[kLanes][kLanes];
  for (int64_t c = 0; c < channels; c++)
    for (int x = 0; x < 3; x++) {
      Vec u[6], w[3];
      for (int i = 0; i < 6; i++)
        u[i] = load(folded + plan.folded(group, i, x) + (channel + c) * plan.fold_row + filter);
      Tile4::weight_adjoint(u, w);
      for (int y = 0; y < 3; y++) store(turned[c * 9 + y * 3 + x], w[y]);
    }
  for (int64_t at = 0; at < channels * 9; at += kLanes) {
    Vec v[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; r++) v[r] = load(turned[at + r]);
    transpose(v);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; r++) store(run[r], v[r]);
    const int n = static_cast<int>(smaller(kLanes, channels * 9 - at));
    for (int64_t f = 0; f < filters; f++) {
      T* to = dw + ((group * plan.filters + filter + f) * plan.channels + channel) * 9 + at;
      if (n == kLanes)
        store(to, load(run[f]));
      else
        store_part(to, load(run[f]), n);
    }
  }
}

inline void winograd_weight_run(const ConvWeightParams& p) {
  const WinogradWeightPlan plan(p);
  const cpu::Scratch scratch(static_cast<size_t>(plan.folded(p.groups, 0, 0)) * sizeof(float));
  float* folded = scratch.floats();
  with_dtype(p.dtype, [&]<class T>(T*) {
    parallel_for(p.threads, plan.chunks, [&](int64_t chunk) {
      if (plan.rows == 6)
        winograd_weight_chunk<6, T>(p, plan, chunk, folded);
      else if (plan.rows == 3)
        winograd_weight_chunk<3, T>(p, plan, chunk, folded);
      else
        winograd_weight_chunk<1, T>(p, plan, chunk, folded);
    });
    const int64_t per_group = ceil_div(plan.channels, kLanes);
    parallel_for(p.threads, p.groups * per_group, [&](int64_t i) {
      for (int64_t f = 0; f < plan.filters; f += kLanes)
        fold_weights(plan, folded, i / per_group, i % per_group * kLanes, f, static_cast<T*>(p.dw));
    });
  });
}

}  // namespace
}  // namespace dlops
