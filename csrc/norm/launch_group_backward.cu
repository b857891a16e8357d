#include "group_backward.cuh"
#include "launch_parts.h"

namespace dlops {

using namespace norm;

static GradientPieces pieces_of(const GroupNormBackwardParams& p) {
  if (p.channels_last) {
    const ColumnTile tile = column_tile(p.hw, p.c, 16 / bytes_of(p.dtype), kMostPieces);
    return {tile.piece, tile.pieces};
  }
  const int64_t piece = plane_piece(p.hw);
  return {piece, ceil_div(p.hw, piece)};
}

int64_t group_norm_backward_workspace_cuda(const GroupNormBackwardParams& p) {
  if (p.n * p.c * p.hw == 0) return 0;
  return 2 * p.n * (pieces_of(p).pieces * p.c + p.groups + p.c);
}

// What follows from the pieces: dscale, dshift, dweight, dbias, and (fused or not, it is one map) dx.
template <class T>
static int finish(const GroupNormBackwardParams& p, const GradientPieces& pieces, cudaStream_t s) {
  int error = launch(group_norm_combine<T>,
                     {task_grid(ceil_div(p.n * p.groups, kThreads / 32)), dim3(kThreads), 0, s}, p, pieces);
  if (error == cudaSuccess && (p.dweight || p.dbias)) {
    const float2* channels =
        reinterpret_cast<const float2*>(p.workspace) + p.n * (pieces.pieces * p.c + p.groups);
    error = launch(column_sums<float2>, {task_grid(ceil_div(p.c, 32)), dim3(32, kThreads / 32), 0, s},
                   channels, p.n, p.c, p.dweight, p.dbias);
  }
  if (error != cudaSuccess || !p.dx) return error;
  if (p.channels_last) {
    const ColumnTile tile = column_tile(p.hw, p.c, kVec<T>, kMostPieces);
    return launch(group_norm_dx_last<T>,
                  {task_grid(p.n * tile.pieces * tile.tiles), dim3(tile.x, tile.y), 0, s}, p, pieces, tile,
                  wide_rows<T>(p.c, p.dy, p.x, p.dx));
  }
  const RowGrid g = row_grid(p.n * p.c, ceil_div(p.hw, kVec<T>), 1);
  return launch(group_norm_dx<T>, {g.grid, g.block, 0, s}, p, pieces, wide_rows<T>(p.hw, p.dy, p.x, p.dx));
}

int group_norm_backward_naive_cuda(const GroupNormBackwardParams& p, dlops_stream stream) {
  if (p.n * p.c * p.hw == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    const GradientPieces whole{p.hw, 1};
    const int error = launch(group_norm_backward_naive<T>,
                             {task_grid(ceil_div(p.n * p.c, kThreads)), dim3(kThreads), 0, s}, p, whole);
    return error == cudaSuccess ? finish<T>(p, whole, s) : error;
  });
}

int group_norm_backward_cuda(const GroupNormBackwardParams& p, dlops_stream stream) {
  if (p.n * p.c * p.hw == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    const GradientPieces pieces = pieces_of(p);
    int error;
    if (p.channels_last) {
      const ColumnTile tile = column_tile(p.hw, p.c, kVec<T>, kMostPieces);
      error = launch(group_norm_sums_last<T>,
                     {task_grid(p.n * tile.pieces * tile.tiles), dim3(tile.x, tile.y), 0, s}, p, pieces, tile,
                     wide_rows<T>(p.c, p.dy, p.x));
    } else {
      error = launch(group_norm_sums<T>,
                     {task_grid(ceil_div(p.n * p.c * pieces.pieces, kThreads / 32)), dim3(kThreads), 0, s}, p,
                     pieces, wide_rows<T>(p.hw, p.dy, p.x));
    }
    return error == cudaSuccess ? finish<T>(p, pieces, s) : error;
  });
}

}  // namespace dlops
