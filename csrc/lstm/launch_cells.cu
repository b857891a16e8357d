#include "cells_backward.cuh"
#include "launch_parts.h"
#include "with_cell.h"

namespace dlops {

using namespace lstm;

const char* cells_refuses_cuda(const RecurrenceProblem& p) {
  if (p.norm_weight || p.cell_weight) return "has no LayerNorm";
  if (p.projects()) return "has no projection";
  return nullptr;
}

// A thread per sample and unit.
static Launch launch_per_unit(const RecurrenceProblem& p, dlops_stream stream) {
  const RowGrid g = row_grid(p.batch, p.hidden, 1);
  return {g.grid, g.block, 0, static_cast<cudaStream_t>(stream)};
}

int64_t cells_forward_workspace_cuda(const RecurrenceParams& p) {
  return p.cell == Cell::lstm ? p.batch * p.hidden : 0;
}

int cells_forward_cuda(const RecurrenceParams& p, dlops_stream stream) {
  const Launch per_unit = launch_per_unit(p, stream);
  return with_cell_and_dtype(p.cell, p.dtype, [&](auto cell, auto* t) {
    int error = cudaSuccess;
    for (int64_t step = 0; step < p.steps && error == cudaSuccess; step++)
      error =
          launch(cells_step<decltype(cell)::value, std::remove_pointer_t<decltype(t)>>, per_unit, p, step);
    return error;
  });
}

int64_t cells_backward_workspace_cuda(const RecurrenceBackwardParams& p) { return carried_size(p); }

int cells_backward_cuda(const RecurrenceBackwardParams& p, dlops_stream stream) {
  const Launch per_unit = launch_per_unit(p, stream);
  const Carried carry = carried(p);
  const int error = with_cell_and_dtype(p.cell, p.dtype, [&](auto cell, auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    int error = cudaSuccess;
    for (int64_t step = p.steps - 1; step >= 0 && error == cudaSuccess; step--) {
      error = launch(cells_gates<decltype(cell)::value, T>, per_unit, p, carry, step);
      if (error == cudaSuccess) error = launch(cells_state<T>, per_unit, p, carry, step);
    }
    return error;
  });
  return error == cudaSuccess && p.h_before ? h_before_cuda(p, stream) : error;
}

int h_before_cuda(const RecurrenceBackwardParams& p, dlops_stream stream) {
  RowGrid g = row_grid(p.batch, p.state, 1);
  g.grid.z = block_count(p.steps, kMaxRowBlocks);
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(gather_h_before<std::remove_pointer_t<decltype(t)>>,
                  {g.grid, g.block, 0, static_cast<cudaStream_t>(stream)}, p);
  });
}

}  // namespace dlops
