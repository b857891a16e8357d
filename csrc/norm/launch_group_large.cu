#include "group_large.cuh"
#include "launch_parts.h"

namespace dlops {

using namespace norm;

int64_t group_norm_large_workspace(const GroupNormParams& p) {
  const int64_t size = p.c / p.groups * p.hw;
  if (p.channels_last)
    return 2 * p.n * p.c * column_tile(p.hw, p.c, 16 / bytes_of(p.dtype), kMostPieces).pieces;
  return 2 * p.n * p.groups * ceil_div(size, group_piece(size));
}

template <class T>
static int planes(const GroupNormParams& p, cudaStream_t stream) {
  const int64_t size = p.c / p.groups * p.hw, piece = group_piece(size), pieces = ceil_div(size, piece);
  int error = launch(group_norm_stats<T>, {task_grid(p.n * p.groups * pieces), dim3(kThreads), 0, stream}, p,
                     piece, pieces, wide_rows<T>(size, p.x));
  if (error == cudaSuccess)
    error = launch(group_norm_finish<float>,
                   {task_grid(ceil_div(p.n * p.groups, kThreads / 32)), dim3(kThreads), 0, stream}, p,
                   int64_t{1}, size, piece, pieces);
  if (error != cudaSuccess) return error;
  const RowGrid g = row_grid(p.n * p.c, ceil_div(p.hw, kVec<T>), kMapUnroll);
  return launch(group_norm_map<T>, {g.grid, g.block, 0, stream}, p, wide_rows<T>(p.hw, p.x, p.y));
}

template <class T>
static int pixels(const GroupNormParams& p, cudaStream_t stream) {
  const ColumnTile tile = column_tile(p.hw, p.c, kVec<T>, kMostPieces);
  const bool wide = wide_rows<T>(p.c, p.x, p.y);
  const dim3 grid = task_grid(p.n * tile.pieces * tile.tiles), block(tile.x, tile.y);
  int error = launch(group_norm_stats_last<T>, {grid, block, 0, stream}, p, tile, wide);
  if (error == cudaSuccess)
    error = launch(group_norm_finish<float>,
                   {task_grid(ceil_div(p.n * p.groups, kThreads / 32)), dim3(kThreads), 0, stream}, p,
                   p.c / p.groups, p.hw, tile.piece, tile.pieces);
  if (error != cudaSuccess) return error;
  return launch(group_norm_map_last<T>, {grid, block, 0, stream}, p, tile, wide);
}

int group_norm_large_cuda(const GroupNormParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    return p.channels_last ? pixels<T>(p, s) : planes<T>(p, s);
  });
}

}  // namespace dlops
