// Winograd's convolution for 3x3 kernels with stride 1, blocked for the L2 cache.
//
//   for each block of tiles (a chunk; with few blocks also a range of filters):
//     V[xi][tile][channel] = B^T d B                 (winograd_image.h)
//     for xi: M[xi][tile][filter] = V[xi] U[xi]      (U: winograd_pack.h; the product: gemm.h)
//     y = activation(A^T M A + bias + residual)      (winograd_result.h)
//
// The data gradient is the same computation on the mirrored problem. What a tile gives depends on nothing but the tile: not
// on its block, so not on the batch it is in or on the number of threads.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "winograd_pack.h"
#include "winograd_result.h"

namespace dlops {
namespace {

[[maybe_unused]] inline const char* winograd_refusal(const ConvProblem& p) {
  for (int i = 0; i < 3; i++)
    if (p.kernel[i] != (i ? 3 : 1) || p.stride[i] != 1 || p.dilation[i] != 1)
      return "is for 3x3 kernels with stride 1 and dilation 1";
  if (p.in[0] != 1 || p.out[0] != 1 || p.padding[0] != 0) return "is for 2-D convolutions";
  if (p.padding[1] < 0 || p.padding[1] > 2 || p.padding[2] < 0 || p.padding[2] > 2)
    return "is for padding 0, 1 or 2";
  if (p.groups > 1 && (p.group_channels() < 16 || p.group_filters() < 16))
    return "is for groups of at least 16 channels and filters";
  return nullptr;
}

// The convolution whose result is the data gradient: of dy with w transposed and rotated by half a turn.
inline ConvProblem mirrored(const ConvProblem& p) {
  ConvProblem q = p;
  q.channels = p.filters;
  q.filters = p.channels;
  for (int i = 0; i < 3; i++) {
    q.in[i] = p.out[i];
    q.out[i] = p.in[i];
    q.padding[i] = p.kernel[i] - 1 - p.padding[i];
  }
  return q;
}
inline ConvForwardParams mirrored(const ConvDataParams& p) {
  ConvForwardParams q{};
  static_cast<ConvProblem&>(q) = mirrored(static_cast<const ConvProblem&>(p));
  q.x = p.dy;
  q.w = p.w;
  q.packed = p.packed;
  q.epilogue = p.epilogue;
  q.y = p.dx;
  return q;
}

// How the work is cut. A chunk is a block of segments, a group and a range of filters.
template <class Tile>
struct WinogradPlan {
  explicit WinogradPlan(const ConvProblem& p)
      : channels(p.group_channels()),
        filters(p.group_filters()),
        tiling(p.batch, p.out[1], p.out[2], Tile::kOut) {
    constexpr int64_t kNear = 128 * 1024, kFar = 2 << 20;  // floats that stay in L2; that leave all caches
    constexpr int64_t kPlanes = Tile::kIn * Tile::kIn;
    const int64_t fit = kNear / (kPlanes * (channels + filters));
    const int64_t total = tiling.count * tiling.tiles;
    const int64_t fewest = kPlanes * channels * filters > kFar ? 2 * kFewestTiles : kFewestTiles;
    int64_t tiles = larger(smaller(fit, kMostTiles), fewest);
    if (p.threads > 1) tiles = larger(smaller(tiles, total / (4 * p.threads)), kFewestTiles);
    segments = larger(tiles / tiling.tiles, 1);
    blocks = ceil_div(tiling.count, segments);
    segments = ceil_div(tiling.count, blocks);
    // With few blocks threads share out the filters, and each transforms the tiles for itself.
    const int64_t panels = ceil_div(filters, kPanel), wanted = p.threads > 1 ? 4 * p.threads : 1;
    const int64_t ranges = larger(smaller(wanted / (blocks * p.groups), panels / 2), 1);
    range = ceil_div(panels, ranges) * kPanel;
    per_block = ceil_div(filters, range);
    chunks = blocks * p.groups * per_block;

    v_row = odd_lines(whole_vectors(channels));
    m_row = whole_vectors(smaller(range, filters));
    v_plane = odd_lines(segments * tiling.tiles * v_row);
    m_plane = odd_lines(segments * tiling.tiles * m_row);
    pitch = strip_pitch(tiling.tiles, Tile::kOut, Tile::kIn);
  }
  // Every block reads all of U: 28 tiles and more hide that behind the products, twice as many where U is in memory.
  static constexpr int64_t kFewestTiles = 28, kMostTiles = 112;

  int64_t strip_floats() const { return Tile::kIn * pitch * kLanes; }
  int64_t floats() const {
    return Tile::kIn * Tile::kIn * (v_plane + m_plane) + strip_floats() + whole_vectors(filters);
  }
  int64_t channels, filters;  // of a group
  Tiling tiling;
  int64_t segments, blocks;  // of a block; in all
  int64_t range, per_block;  // filters of a chunk; chunks of a block in each group
  int64_t chunks, v_row, m_row, v_plane, m_plane, pitch;
};

// M [tiles, width] = V [tiles, depth] U [depth, width], in sums of at most kDepth products.
template <int NR>
DLOPS_INLINE void product_panel(int64_t tiles, int64_t depth, const float* v, int64_t v_row, const float* u,
                                float* m, int64_t m_row) {
  constexpr int64_t kDepth = 256, kWidth = NR * kLanes;
  multiply<NR, Into::overwrite, true>(tiles, smaller(depth, kDepth), v, v_row, u, kWidth, m, m_row);
  for (int64_t k = kDepth; k < depth; k += kDepth)
    multiply<NR, Into::add, true>(tiles, smaller(depth - k, kDepth), v + k, v_row, u + k * kWidth, kWidth, m,
                                  m_row);
}
DLOPS_INLINE void product(int64_t vectors, int64_t tiles, int64_t depth, const float* v, int64_t v_row,
                          const float* u, float* m, int64_t m_row) {
  switch (vectors) {
    case 1: return product_panel<1>(tiles, depth, v, v_row, u, m, m_row);
    case 2: return product_panel<2>(tiles, depth, v, v_row, u, m, m_row);
    case 3: return product_panel<3>(tiles, depth, v, v_row, u, m, m_row);
    case 4: return product_panel<kTileVectors>(tiles, depth, v, v_row, u, m, m_row);
  }
}

template <class Tile, class T>
void winograd_chunk(const ConvForwardParams& p, const WinogradPlan<Tile>& plan, int64_t chunk) {
  constexpr int kIn = Tile::kIn;
  const int64_t part = chunk % plan.per_block, group = chunk / plan.per_block % p.groups,
                block = chunk / plan.per_block / p.groups;
  const int64_t first = block * plan.segments, count = smaller(plan.segments, plan.tiling.count - first);
  if (count <= 0) return;
  const int64_t filter = part * plan.range, filters = smaller(plan.range, plan.filters - filter);

  const cpu::Scratch scratch(static_cast<size_t>(plan.floats()) * sizeof(float));
  const Planes v{scratch.floats(), plan.v_row, plan.v_plane};
  const Planes m{v.data + kIn * kIn * v.plane, plan.m_row, plan.m_plane};
  float *strip = m.data + kIn * kIn * m.plane, *bias = strip + plan.strip_floats();

  const auto transform = [](const Vec(&d)[kIn], Vec(&u)[kIn]) { Tile::image(d, u); };
  transform_tiles<Tile::kOut, kIn, kIn, kIn>(source_image<T>(p, p.x, group), plan.tiling, first, count, v,
                                             strip, transform, transform);

  const PackedWeights<Tile> weights(p);
  const int64_t tiles = count * plan.tiling.tiles;
  for (int64_t xi = 0; xi < kIn * kIn; xi++)
    for (int64_t f = 0; f < filters; f += kPanel)
      product(weights.panel_width(filter + f) / kLanes, tiles, plan.channels, v.data + xi * v.plane, v.row,
              p.packed + weights.at(group, xi, filter + f), m.data + xi * m.plane + f, m.row);

  const int64_t at = group * plan.filters + filter;
  for (int64_t f = 0; f < whole_vectors(filters); f++)
    bias[f] = p.epilogue.bias && f < filters ? load1(static_cast<const T*>(p.epilogue.bias) + at + f) : 0.f;
  const ResultShape shape{p.filters, at, filters, p.out[1], p.out[2], p.channels_last};
  transform_results<Tile, T>(shape, plan.tiling, first, count, m, bias, Finish<T>(p.epilogue, p.y), strip,
                             plan.pitch);
}

template <class Tile>
void winograd_run(const ConvForwardParams& p) {
  const WinogradPlan<Tile> plan(p);
  with_dtype(p.dtype, [&]<class T>(T*) {
    parallel_for(p.threads, plan.chunks, [&](int64_t chunk) { winograd_chunk<Tile, T>(p, plan, chunk); });
  });
}
template <class Tile>
void winograd_pack(const ConvProblem& p, const void* w, bool mirrored, float* packed) {
  with_dtype(p.dtype,
             [&]<class T>(T*) { pack_weights<Tile>(p, static_cast<const T*>(w), mirrored, packed); });
}
template <class Tile>
int64_t winograd_floats(const ConvProblem& p) {
  return PackedWeights<Tile>(p).floats(p.groups);
}

}  // namespace
}  // namespace dlops
