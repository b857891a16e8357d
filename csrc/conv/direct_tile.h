// The register tile of the direct kernels: the sums of up to 8 output pixels (rows) and up to kTileVectors vectors of
// filters (columns). Pixels lie in a channels-last image; each has its own address, so a tile may reach over the end of an
// output row, or of an image.
#pragma once
#include "../cpu/gemm.h"
#include "correlation.h"
#include "epilogue.h"

namespace dlops {
namespace {

// Rows of a tile: no more than there are registers for addresses.
constexpr int direct_rows(int vectors) { return tile_rows(vectors) < 8 ? tile_rows(vectors) : 8; }

// out[to[i]] (+)= sum over products k of image[from[i] + offset[k]] weights[k]
struct DirectTiles {
  const float* image;
  const int64_t* offset;
  int64_t products;
  const float* weights;  // [products, vectors kLanes]
  float* out;
  bool add;               // to what is in `out`
  const float* bias;      // null: more products follow, and the rest of the epilogue with them
  const float* residual;  // as `out`, or null
  bool relu;
};

template <int MR, int NR>
__attribute__((noinline)) void direct_tile(const DirectTiles& t, const int64_t* from, const int64_t* to) {
  Vec sum[MR][NR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) sum[i][j] = zero();

  const float *weights = t.weights, *pixel[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) pixel[i] = t.image + from[i];
  for (int64_t k = 0; k < t.products; k++, weights += NR * kLanes) {
    const int64_t offset = t.offset[k];
    Vec row[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) row[j] = load(weights + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      const Vec x = set1(pixel[i][offset]);
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) sum[i][j] = fma(x, row[j], sum[i][j]);
    }
  }

  // One test for the whole tile, not one per vector.
  auto each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) sum[i][j] = f(sum[i][j], to[i] + j * kLanes, j * kLanes);
  };
  if (t.add) each([&](Vec v, int64_t at, int) { return load(t.out + at) + v; });
  if (t.bias) each([&](Vec v, int64_t, int lane) { return v + load(t.bias + lane); });
  if (t.residual) each([&](Vec v, int64_t at, int) { return v + load(t.residual + at); });
  if (t.relu) each([&](Vec v, int64_t, int) { return activate(v, Activation::relu); });
  each([&](Vec v, int64_t at, int) {
    store(t.out + at, v);
    return v;
  });
}

template <int MR, int NR>
DLOPS_INLINE void direct_tile_of(int64_t rows, const DirectTiles& t, const int64_t* from, const int64_t* to) {
  if (rows == MR) return direct_tile<MR, NR>(t, from, to);
  if constexpr (MR > 1) direct_tile_of<MR - 1, NR>(rows, t, from, to);
}

// All pixels, in tiles of equal height.
template <int NR>
void direct_tiles_of(const DirectTiles& t, int64_t pixels, const int64_t* from, const int64_t* to) {
  constexpr int kRows = direct_rows(NR);
  for (int64_t tiles = ceil_div(pixels, kRows), i = 0; tiles > 0; tiles--) {
    const int64_t rows = ceil_div(pixels - i, tiles);
    direct_tile_of<kRows, NR>(rows, t, from + i, to + i);
    i += rows;
  }
}

inline void direct_tiles(int64_t vectors, const DirectTiles& t, int64_t pixels, const int64_t* from,
                         const int64_t* to) {
  if (vectors == 1) return direct_tiles_of<1>(t, pixels, from, to);
  if (vectors == 2) return direct_tiles_of<2>(t, pixels, from, to);
  if (vectors == 3) return direct_tiles_of<3>(t, pixels, from, to);
  if constexpr (kTileVectors == 4) direct_tiles_of<4>(t, pixels, from, to);
}

}  // namespace
}  // namespace dlops
