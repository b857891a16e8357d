// Winograd's F(2x2, 3x3): 2 x 2 outputs of 4 x 4 inputs with 16 products in place of 36 (Lavin and Gray 2016, section 4.1).
//
//   y = A' [ sum over channels of (G w G') * (B' d B) ] A      * element by element, ' transposed
//
// Of each 4 x 4 patch d of x the 16 transformed numbers go to 16 separate matrix products over the channels. One kernel does it
// all, and nothing but x, the transformed weights and y touches memory: a block of 256 threads makes 32 tiles x 32 filters.
//
//   8 channels at a time   each thread transforms one (tile, channel) patch in registers -> inputs [16, 8, 32] in shared memory,
//                          weights [16, 8, 32] beside it; the next patch is on its way meanwhile
//   16 products            16 threads for each, 8 x 8 sums per thread
//   the way out            [16, 8 filters, 32 tiles] through shared memory, four times; a thread transforms (tile, filter)
//
// Arithmetic is float32 for every type. Its numbers are sums of differences: Inf and NaN spread over a tile, and exact zeros
// become about 1e-7 of the largest value. The data pass is the forward pass of the mirrored problem.
#pragma once
#include "epilogue.cuh"
#include "geometry.cuh"

namespace dlops::conv {

constexpr int kWinogradThreads = 256, kTiles = 32, kFilters = 32, kDepth = 8;
constexpr int kPitch = 36;  // of rows of 32: rows that are read side by side lie in other banks
constexpr int kHalf = 16 * kDepth * kPitch;

struct WinogradParams : ConvProblem {
  const void* x;
  const float* weights;  // [groups, 16, channels, filters] of a group, padded with zeros to whole tiles
  ConvEpilogue epilogue;
  void* y;
};

struct WinogradShape { int64_t steps, filter_tiles; };  // of a group
constexpr WinogradShape winograd_shape(const ConvProblem& p) {
  return {tiles(p.group_channels(), kDepth), tiles(p.group_filters(), kFilters)};
}

// ---- the transforms of one row or column. In two dimensions: rows, then columns ----

DLOPS_DEVICE void transform_input(float& a, float& b, float& c, float& d) {  // B' d
  const float first = a - c, second = b + c, third = c - b, fourth = b - d;
  a = first, b = second, c = third, d = fourth;
}
DLOPS_DEVICE void transform_output(float a, float b, float c, float d, float& first, float& second) {  // A' m
  first = a + b + c;
  second = b - c - d;
}

constexpr KernelInfo kWinogradWeights =
    DLOPS_CONV_CUDA_KERNEL("conv", "winograd", "1 filter of 1 channel", "conv_winograd_weights", 0);
// Of the problem p that runs. mirrored: w is that of the problem whose data pass it is, [channels, filters] of a group, and
// taps turn round.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    conv_winograd_weights(const __grid_constant__ ConvProblem p, const void* w, const bool mirrored,
                          float* out) {
  const WinogradShape s = winograd_shape(p);
  const int64_t rows = s.steps * kDepth, width = s.filter_tiles * kFilters;
  for (int64_t at = flat_thread(); at < p.groups * rows * width; at += flat_threads()) {
    const int64_t o = at % width, c = at / width % rows, group = at / width / rows;
    float g[3][3] = {};
    if (o < p.group_filters() && c < p.group_channels()) {
      const int64_t from = mirrored ? (group * p.group_channels() + c) * p.group_filters() + o
                                    : (group * p.group_filters() + o) * p.group_channels() + c;
#pragma unroll
      for (int i = 0; i < 9; i++)
        g[i / 3][i % 3] = static_cast<float>(static_cast<const T*>(w)[from * 9 + (mirrored ? 8 - i : i)]);
    }
    float rows_done[4][3];  // G g
#pragma unroll
    for (int j = 0; j < 3; j++) {
      rows_done[0][j] = g[0][j];
      rows_done[1][j] = 0.5f * (g[0][j] + g[1][j] + g[2][j]);
      rows_done[2][j] = 0.5f * (g[0][j] - g[1][j] + g[2][j]);
      rows_done[3][j] = g[2][j];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* r = rows_done[i];
      float* to = out + ((group * 16 + 4 * i) * rows + c) * width + o;
      to[0] = r[0];
      to[rows * width] = 0.5f * (r[0] + r[1] + r[2]);
      to[2 * rows * width] = 0.5f * (r[0] - r[1] + r[2]);
      to[3 * rows * width] = r[2];
    }
  }
}

// The 4 x 4 patch of x under a tile, at one channel after another.
template <class T>
struct Patch {
  const T* channel;       // of the tile's sample
  int row[4], column[4];  // y width, x; -1: reads as 0

  // tile: of [N, rows of tiles, columns of tiles]; none past the last.
  DLOPS_DEVICE Patch(const WinogradParams& p, const Strides& in, int64_t tile, int64_t tile_rows,
                     int64_t tile_columns) {
    const int64_t sample = tile / (tile_rows * tile_columns);
    const int top = static_cast<int>(tile / tile_columns % tile_rows) * 2 - static_cast<int>(p.padding[1]);
    const int left = static_cast<int>(tile % tile_columns) * 2 - static_cast<int>(p.padding[2]);
    const int height = static_cast<int>(p.in[1]), width = static_cast<int>(p.in[2]);
    channel = static_cast<const T*>(p.x) + sample * in.sample;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int y = padded(top + i, height, p.padding_mode), x = padded(left + i, width, p.padding_mode);
      row[i] = sample < p.batch && y >= 0 && y < height ? y * width : -1;
      column[i] = x < width ? x : -1;
    }
  }
  DLOPS_DEVICE void load(int64_t c, const Strides& in, bool exists, float (&d)[4][4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        d[i][j] = exists && row[i] >= 0 && column[j] >= 0
                      ? static_cast<float>(channel[c * in.channel + (row[i] + column[j]) * in.pixel])
                      : 0.f;
  }
};

constexpr KernelInfo kWinograd =
    DLOPS_CONV_CUDA_KERNEL("conv", "winograd", "32 tiles of 2x2 x 32 filters x 8", "conv_winograd", 0);
constexpr KernelInfo kWinogradData =
    DLOPS_CONV_CUDA_KERNEL("conv_data", "winograd", "32 tiles of 2x2 x 32 channels x 8", "conv_winograd", 0);
template <class T, bool last>
__global__ void __launch_bounds__(kWinogradThreads) conv_winograd(const __grid_constant__ WinogradParams p) {
  DLOPS_SHARED(float4, storage, [2 * kHalf / 4]);
  float *inputs = reinterpret_cast<float*>(storage), *weights = inputs + kHalf;  // [16, 8, 32]
  const int thread = static_cast<int>(threadIdx.x);
  const WinogradShape s = winograd_shape(p);
  const Strides in = strides_of(last, p.channels, p.in_pixels()),
                out = strides_of(last, p.filters, p.out_pixels());
  const int64_t tile_rows = tiles(p.out[1], 2), tile_columns = tiles(p.out[2], 2);
  const int64_t all = p.batch * tile_rows * tile_columns, width = s.filter_tiles * kFilters;
  // What a thread transforms, on the way in and on the way out: neighbours lie together in memory.
  const int my_tile = last ? thread / 8 : thread % kTiles, my_eighth = last ? thread % 8 : thread / kTiles;
  // What it multiplies: of product `product`, tiles 4a .. 4a + 3 and 16 more, filters 4b .. 4b + 3 and 16 more.
  const int product = thread / 16, a = thread % 4 * 4, b = thread / 4 % 4 * 4;

  for (int64_t task = blockIdx.x; task < tiles(all, kTiles) * s.filter_tiles * p.groups; task += gridDim.x) {
    const int64_t first_filter = task % s.filter_tiles * kFilters, group = task / s.filter_tiles % p.groups;
    const int64_t tile = task / s.filter_tiles / p.groups * kTiles + my_tile,
                  first_channel = group * p.group_channels();
    const Patch<T> patch(p, in, tile, tile_rows, tile_columns);
    // Of the [16, 8, 32] weights: a quad of filters, every 4th of the 128 rows (product, channel).
    const float* from = p.weights + (group * 16 + thread / 64) * s.steps * kDepth * width +
                        thread / 8 % 8 * width + first_filter + thread % 8 * 4;

    float d[4][4];
    float4 w[4];
    auto take = [&](int64_t step) {
      const int64_t c = step * kDepth + my_eighth;
      patch.load(first_channel + c, in, c < p.group_channels(), d);
#pragma unroll
      for (int i = 0; i < 4; i++)
        w[i] = *reinterpret_cast<const float4*>(from + (4 * i * s.steps + step) * kDepth * width);
    };
    auto put = [&] {
#pragma unroll
      for (int j = 0; j < 4; j++) transform_input(d[0][j], d[1][j], d[2][j], d[3][j]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        transform_input(d[i][0], d[i][1], d[i][2], d[i][3]);
#pragma unroll
        for (int j = 0; j < 4; j++) inputs[((4 * i + j) * kDepth + my_eighth) * kPitch + my_tile] = d[i][j];
        *reinterpret_cast<float4*>(weights + (32 * i + thread / 8) * kPitch + thread % 8 * 4) = w[i];
      }
    };

    float sum[8][8] = {};
    take(0);
    for (int64_t step = 0; step < s.steps; step++) {
      put();
      __syncthreads();  // inputs and weights are there
      if (step + 1 < s.steps) take(step + 1);
#pragma unroll
      for (int k = 0; k < kDepth; k++) {
        const float *u = inputs + (product * kDepth + k) * kPitch + a,
                    *v = weights + (product * kDepth + k) * kPitch + b;
        float rows[8], columns[8];
#pragma unroll
        for (int h = 0; h < 2; h++) {
          unpack<float>(*reinterpret_cast<const uint4*>(u + 16 * h),
                        *reinterpret_cast<float (*)[4]>(rows + 4 * h));
          unpack<float>(*reinterpret_cast<const uint4*>(v + 16 * h),
                        *reinterpret_cast<float (*)[4]>(columns + 4 * h));
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
          for (int j = 0; j < 8; j++) sum[i][j] = fmaf(rows[i], columns[j], sum[i][j]);
      }
      __syncthreads();  // inputs and weights are read
    }

    // The way out, two of each thread's 8 filters at a time: [16, 8, 32 tiles] over the inputs.
    const int64_t sample = tile / (tile_rows * tile_columns);
    const int y = static_cast<int>(tile / tile_columns % tile_rows) * 2,
              x = static_cast<int>(tile % tile_columns) * 2;
#pragma unroll
    for (int turn = 0; turn < 4; turn++) {
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          inputs[(product * 8 + b / 2 + j) * kPitch + a + i % 4 + i / 4 * 16] = sum[i][2 * turn + j];
      __syncthreads();  // the sums are there
      float m[16], half[2][4], result[4];
#pragma unroll
      for (int i = 0; i < 16; i++) m[i] = inputs[(i * 8 + my_eighth) * kPitch + my_tile];
#pragma unroll
      for (int j = 0; j < 4; j++)
        transform_output(m[j], m[4 + j], m[8 + j], m[12 + j], half[0][j], half[1][j]);
#pragma unroll
      for (int i = 0; i < 2; i++)
        transform_output(half[i][0], half[i][1], half[i][2], half[i][3], result[2 * i], result[2 * i + 1]);
      const int64_t filter = first_filter + my_eighth / 2 * 4 + my_eighth % 2 + turn % 2 * 2 + turn / 2 * 16;
      if (tile < all && filter < p.group_filters()) {
        const int64_t o = group * p.group_filters() + filter, base = sample * out.sample + o * out.channel;
#pragma unroll 1
        for (int i = 0; i < 4; i++) {  // a rotation: one copy of the code
          const int64_t row = y + i / 2, column = x + i % 2;
          if (row < p.out[1] && column < p.out[2])
            finish<T>(p.epilogue, p.y, base + (row * p.out[2] + column) * out.pixel, o, result[0]);
          result[0] = result[1], result[1] = result[2], result[2] = result[3];
        }
      }
      __syncthreads();  // the sums are read
    }
  }
}

}  // namespace dlops::conv
