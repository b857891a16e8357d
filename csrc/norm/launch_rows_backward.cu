#include "launch_parts.h"
#include "rows_backward.cuh"

namespace dlops {

using namespace norm;

static ColumnTile tile_of(const RowNormBackwardParams& p) {
  return column_tile(p.rows, p.d, 16 / bytes_of(p.dtype), kMostRowPieces);
}

int64_t row_norm_backward_workspace_cuda(const RowNormBackwardParams& p) {
  if (p.rows * p.d == 0 || !(p.dweight || p.dbias)) return 0;
  return 2 * tile_of(p).pieces * p.d;
}

int row_norm_backward_naive_cuda(const RowNormBackwardParams& p, dlops_stream stream) {
  if (p.d == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(row_norm_backward_naive<std::remove_pointer_t<decltype(t)>>,
                  {task_grid(ceil_div(p.rows > p.d ? p.rows : p.d, kThreads)), dim3(kThreads), 0,
                   static_cast<cudaStream_t>(stream)},
                  p);
  });
}

int row_norm_backward_cuda(const RowNormBackwardParams& p, dlops_stream stream) {
  if (p.d == 0) return cudaSuccess;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  int error = cudaSuccess;
  if (p.dx && p.rows > 0)
    error = with_dtype(p.dtype, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      const bool wide = wide_rows<T>(p.d, p.dy, p.dsum, p.s, p.weight, p.dx);
      const RowBlock b = row_block(p.rows, ceil_div(p.d, kVec<T>), kGradientHeld<T>);
      return launch(row_norm_dx<T>, {b.grid, b.block, 0, s}, p, wide);
    });
  if (error != cudaSuccess || !(p.dweight || p.dbias)) return error;
  const ColumnTile tile = tile_of(p);
  if (p.rows > 0)
    error = with_dtype(p.dtype, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      return launch(row_norm_columns<T>, {task_grid(tile.pieces * tile.tiles), dim3(tile.x, tile.y), 0, s}, p,
                    tile, wide_rows<T>(p.d, p.dy, p.s));
    });
  if (error != cudaSuccess) return error;
  return launch(column_sums<float2>, {task_grid(ceil_div(p.d, 32)), dim3(32, kThreads / 32), 0, s},
                reinterpret_cast<const float2*>(p.workspace), tile.pieces, p.d, p.dweight, p.dbias);
}

}  // namespace dlops
