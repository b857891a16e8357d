#include "launch_parts.h"
#include "rows.cuh"

namespace dlops {

using namespace norm;

int row_norm_naive_cuda(const RowNormParams& p, dlops_stream stream) {
  if (p.rows * p.d == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(row_norm_naive<std::remove_pointer_t<decltype(t)>>,
                  {task_grid(p.rows), dim3(kThreads), 0, static_cast<cudaStream_t>(stream)}, p);
  });
}

int row_norm_cuda(const RowNormParams& p, dlops_stream stream) {
  if (p.rows * p.d == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool wide = wide_rows<T>(p.d, p.x, p.residual, p.weight, p.bias, p.y, p.sum);
    const RowBlock b = row_block(p.rows, ceil_div(p.d, kVec<T>), kRowHeld<T>);
    return launch(row_norm_fused<T>, {b.grid, b.block, 0, static_cast<cudaStream_t>(stream)}, p, wide);
  });
}

}  // namespace dlops
