// The body of launch_implicit.cu and launch_implicit_data.cu: the two passes differ in what is source and what is result.
#pragma once
#include "implicit_gather.cuh"
#include "launch_implicit_types.h"

namespace dlops::conv::implicit {

// The arranged weights: [rows, taps, chunks * 8] of 16-bit elements, in float32 elements.
inline int64_t arranged_floats(int64_t rows, int64_t taps, int64_t depth) {
  return rows * taps * ceil_div(depth, 8) * 4;
}

// The weights [O, C/G, taps] to p.weights, as the data or the forward pass wants them.
template <class T, bool data>
cudaError_t arrange(const void* w, float* workspace, GatherParams& p, cudaStream_t stream) {
  const int64_t rows = p.result_channels, depth = p.source_depth;
  p.chunks = static_cast<int>(ceil_div(depth, 8));
  p.weights_row = p.taps() * p.chunks * 8;
  if (!data && p.taps() == 1 && wide_rows<T>(depth, w)) {  // they lie so
    p.weights = w;
    return cudaSuccess;
  }
  p.weights = workspace;
  const Arrangement a = {rows, depth, p.taps(), p.chunks, rows / p.groups};
  return launch(conv_implicit_arrange<T, data>,
                {flat_grid(rows * p.taps() * p.chunks), dim3(kRowThreads), 0, stream},
                static_cast<const T*>(w), reinterpret_cast<T*>(workspace), a);
}

// Per group and phase, for the largest phase.
template <bool data>
int64_t row_tiles(const GatherParams& p, int M) {
  int64_t rows = p.batch;
  for (int a = 0; a < 3; a++) rows *= ceil_div(p.result_size[a], data ? p.stride[a] : 1);
  return ceil_div(rows, M);
}
template <bool data>
int64_t blocks_of(const GatherParams& p, int M, int N) {
  int64_t blocks = row_tiles<data>(p, M) * ceil_div(p.result_depth, N) * p.groups;
  for (int a = 0; a < 3; a++) blocks *= data ? phases(p, a) : 1;
  return blocks;
}

template <class T, int M, int N, bool data>
cudaError_t multiply_tiles(GatherParams p, cudaStream_t stream) {
  p.row_tiles = row_tiles<data>(p, M);
  p.column_tiles = ceil_div(p.result_depth, N);
  const auto kernel = [] {
    if constexpr (data)
      return conv_implicit_data<T, M, N>;
    else
      return conv_implicit_forward<T, M, N>;
  }();
  return launch(kernel, {grid_of(blocks_of<data>(p, M, N)), dim3(kThreads), Tile<M, N>::kShared, stream}, p);
}

#if defined(__CUDACC__)
constexpr int kMultiprocessors = 132;  // an H100's
#else
constexpr int kMultiprocessors = 1;  // the simt runner's small problems take every tile
#endif

// The tile by which all is done first: as many turns as the multiprocessors take, times what a tile costs. A smaller one
// reads more per product: it takes 5/4, or 5/3, of the time (expected). The order of a sum does not depend on the tile.
template <class T, bool data>
cudaError_t multiply_best(const GatherParams& p, cudaStream_t stream) {
  const auto cost = [&](int M, int N, int percent) {
    return ceil_div(blocks_of<data>(p, M, N), kMultiprocessors) * M * N * percent;
  };
  const int64_t large = cost(128, 128, 100), narrow = cost(128, 64, 125), small = cost(64, 64, 167);
  if (small < large && small < narrow) return multiply_tiles<T, 64, 64, data>(p, stream);
  if (narrow < large) return multiply_tiles<T, 128, 64, data>(p, stream);
  return multiply_tiles<T, 128, 128, data>(p, stream);
}

template <bool data, class Params>
int gather(const Params& p, const void* source, void* result, dlops_stream stream) {
  GatherParams g{};
  static_cast<ConvProblem&>(g) = p;
  g.source = source, g.result = result, g.epilogue = p.epilogue;
  g.source_channels = data ? p.filters : p.channels, g.result_channels = data ? p.channels : p.filters;
  g.source_depth = g.source_channels / p.groups, g.result_depth = g.result_channels / p.groups;
  g.source_sample = (data ? p.out_pixels() : p.in_pixels()) * g.source_channels;
  for (int a = 0; a < 3; a++) {
    g.source_size[a] = data ? p.out[a] : p.in[a];
    g.result_size[a] = data ? p.in[a] : p.out[a];
  }
  return with_half(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    g.wide = wide_rows<T>(g.source_depth, g.source);
    g.wide_result = wide_rows<T>(g.result_depth, g.result, g.epilogue.residual);
    const cudaError_t error = arrange<T, data>(p.w, p.workspace, g, s);
    return error == cudaSuccess ? multiply_best<T, data>(g, s) : error;
  });
}

}  // namespace dlops::conv::implicit
