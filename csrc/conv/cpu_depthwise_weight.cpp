// Weight gradient of depthwise convolution. Channels are lanes; x and dy are brought to scratch as blocks of kLanes channels
// (depthwise_image.h), and the products of some taps gather in registers while the outputs pass by.
#include <type_traits>

#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "cpu_parts.h"
#include "depthwise_image.h"

namespace dlops {
namespace {

constexpr int64_t kSum = 256;   // products that one register gathers
constexpr int64_t kParts = 32;  // sums over the batch, made apart

// The rows of a tile as the taps of one kernel row see them. Distances are in floats.
struct TapRows {
  const float *x, *dy;  // the first output's pixel
  int64_t rows, outs;
  int64_t x_row, dy_row;  // from one row of outputs to the next
  int64_t next_output;    // in x
  int64_t tap_row, tap;   // in x, from one tap to the next
};

// totals[j totals_row + i] += the sum for the taps j < KY, i < KX.
template <int KX, int KY>
__attribute__((noinline)) void gather_taps(const TapRows& t, float* totals, int64_t totals_row) {
  const int64_t rows_at_once = larger(1, kSum / t.outs);
  for (int64_t y0 = 0; y0 < t.rows; y0 += rows_at_once)
    for (int64_t q0 = 0; q0 < t.outs; q0 += kSum) {
      Vec sum[KY][KX];
#pragma GCC unroll 16
      for (int j = 0; j < KY; j++)
#pragma GCC unroll 16
        for (int i = 0; i < KX; i++) sum[j][i] = zero();
      for (int64_t y = y0; y < smaller(y0 + rows_at_once, t.rows); y++) {
        const float *x = t.x + y * t.x_row + q0 * t.next_output, *dy = t.dy + y * t.dy_row + q0 * kLanes;
        for (int64_t q = smaller(kSum, t.outs - q0); q > 0; q--, x += t.next_output, dy += kLanes) {
          const Vec g = load(dy);
#pragma GCC unroll 16
          for (int j = 0; j < KY; j++)
#pragma GCC unroll 16
            for (int i = 0; i < KX; i++) sum[j][i] = fma(load(x + j * t.tap_row + i * t.tap), g, sum[j][i]);
        }
      }
#pragma GCC unroll 16
      for (int j = 0; j < KY; j++)
#pragma GCC unroll 16
        for (int i = 0; i < KX; i++) {
          float* to = totals + j * totals_row + i * kLanes;
          store(to, load(to) + sum[j][i]);
        }
    }
}

// A kernel row: the taps in eights, fours, and one by one.
DLOPS_INLINE void gather_row(TapRows t, int64_t width, float* totals) {
  auto some = [&](auto gather, int64_t n) {
    for (; width >= n; width -= n, t.x += n * t.tap, totals += n * kLanes) gather(t, totals, 0);
  };
  if (width == 7) return gather_taps<7, 1>(t, totals, 0);
  some(gather_taps<8, 1>, 8);
  if (width == 5) return gather_taps<5, 1>(t, totals, 0);
  some(gather_taps<4, 1>, 4);
  some(gather_taps<1, 1>, 1);
}

// totals [taps, kLanes] += the products of one tile.
void gather_tile(const Axis (&a)[3], const Tile& t, const float* x, const float* dy, float* totals) {
  const int64_t line = t.window[2].count * kLanes, slice = line * t.window[1].count;
  const int64_t height = a[1].taps, width = a[2].taps;
  TapRows r;
  r.rows = t.size[1];
  r.outs = t.size[2];
  r.x_row = a[1].stride * line;
  r.dy_row = t.size[2] * kLanes;
  r.next_output = a[2].stride * kLanes;
  r.tap_row = a[1].dilation * line;
  r.tap = a[2].dilation * kLanes;
  for (int64_t z = 0; z < t.size[0]; z++)
    for (int64_t kz = 0; kz < a[0].taps; kz++) {
      r.dy = dy + z * t.size[1] * r.dy_row;
      for (int64_t ky = 0; ky < height;) {
        r.x = x + (z * a[0].stride + kz * a[0].dilation) * slice + ky * r.tap_row;
        float* to = totals + (kz * height + ky) * width * kLanes;
        if (width == 3 && ky + 3 <= height) {
          gather_taps<3, 3>(r, to, 3 * kLanes);
          ky += 3;
        } else if (width == 5 && ky + 2 <= height) {
          gather_taps<5, 2>(r, to, 5 * kLanes);
          ky += 2;
        } else {
          gather_row(r, width, to);
          ky++;
        }
      }
    }
}

// dy as an image whose every pixel is an output.
void result_axes(const Axis (&axes)[3], Axis (&dy)[3]) {
  for (int d = 0; d < 3; d++) dy[d] = {axes[d].out, 1, axes[d].out, 1, 1, 1, 0, PaddingMode::zeros};
}

// dw = the parts of every block of filters, added in their order. parts: [parts, blocks, taps, kLanes]
template <class T>
void add_parts(const ConvWeightParams& p, float* parts, int64_t count) {
  const int64_t taps = p.taps(), all = round_up(p.filters, kLanes) * taps;
  for (int64_t part = 1; part < count; part++)
    for (int64_t i = 0; i < all; i += kLanes)
      store(parts + i, load(parts + i) + load(parts + part * all + i));
  for (int64_t f = 0; f < p.filters; f++)
    for (int64_t k = 0; k < taps; k++)
      store1(static_cast<T*>(p.dw) + f * taps + k, parts[(f / kLanes * taps + k) * kLanes + f % kLanes]);
}

// Chunk: a part of the batch's tiles, some blocks of channels.
template <class T>
void weight_pass(const ConvWeightParams& p) {
  Axis axes[3], dy_axes[3];
  forward_axes(p, axes);
  result_axes(axes, dy_axes);
  const int64_t taps = p.taps(), blocks = ceil_div(p.filters, kLanes),
                together = blocks_together(axes, blocks, p.channels_last);
  const int64_t groups = ceil_div(blocks, together);
  const Tiling tiling = cut(axes, kTileFloats / (kLanes * together));
  const Tile first = tile(axes, tiling, 0);
  const int64_t x_floats = block_floats(first), dy_floats = block_floats(tile(dy_axes, tiling, 0));
  const int64_t tiles = tiling.tiles(), units = p.batch * tiles;
  const int64_t per_part = ceil_div(units, kParts), parts = ceil_div(units, per_part);

  cpu::Scratch sums(static_cast<size_t>(parts * blocks * taps * kLanes) * sizeof(float));
  float* const partial = sums.floats();
  parallel_for(p.threads, parts * groups, [&](int64_t i) {
    const int64_t part = i / groups, block = i % groups * together, filter = block * kLanes;
    const int64_t n_blocks = smaller(together, blocks - block),
                  count = smaller(n_blocks * kLanes, p.filters - filter);
    cpu::Scratch scratch(static_cast<size_t>(together * (x_floats + dy_floats)) * sizeof(float));
    float *x = scratch.floats(), *dy = x + together * x_floats;
    float* totals = partial + (part * blocks + block) * taps * kLanes;
    clear(totals, n_blocks * taps * kLanes);
    for (int64_t u = part * per_part; u < smaller((part + 1) * per_part, units); u++) {
      const int64_t n = u / tiles;
      const Tile t = tile(axes, tiling, u % tiles), dy_tile = tile(dy_axes, tiling, u % tiles);
      const T* from = static_cast<const T*>(p.x) + n * p.channels * p.in_pixels();
      fill_blocks(
          channels(from, p.channels_last, p.channels, p.in_pixels(), filter, count, p.group_filters()), axes,
          t, x_floats, x);
      const T* to = static_cast<const T*>(p.dy) + n * p.filters * p.out_pixels();
      fill_blocks(channels(to, p.channels_last, p.filters, p.out_pixels(), filter, count, 1), dy_axes,
                  dy_tile, dy_floats, dy);
      for (int64_t b = 0; b < n_blocks; b++)
        gather_tile(axes, t, x + b * x_floats, dy + b * dy_floats, totals + b * taps * kLanes);
    }
  });
  add_parts<T>(p, partial, parts);
}

}  // namespace

namespace DLOPS_PARTS {

const char* depthwise_weight_refuses(const ConvProblem& p) {
  return p.group_channels() == 1 ? nullptr : "is for one channel per group";
}
void depthwise_weight(const ConvWeightParams& p) {
  with_dtype(p.dtype, [&](auto* t) { weight_pass<std::remove_pointer_t<decltype(t)>>(p); });
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
