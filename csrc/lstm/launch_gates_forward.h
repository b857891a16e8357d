// The body of launch_gates_forward_*.cu: one file per element type, so that they compile side by side.
#pragma once
#include "gates.cuh"
#include "launch_parts.h"
#include "with_cell.h"

namespace dlops::lstm {

template <class T>
int gates_of(const GatesParams& p, dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const bool wide =
      wide_units<T>(p.hidden, p.gates_x, p.gates_h, p.b_ih, p.b_hh, p.h, p.c, p.h_out, p.c_out) &&
      wide_units<float>(p.hidden, p.norm_weight, p.cell_weight, p.cell_bias, p.saved, p.hat);
  return with_cell(p.cell, [&](auto cell) -> int {
    constexpr Cell kCell = decltype(cell)::value;
    if (p.norm_weight || p.cell_weight) {
      const RowGrid g = sample_grid(p.batch, p.hidden, kNormThreads);
      return launch(gates_normalised<kCell, T>, {g.grid, g.block, 0, s}, p, wide);
    }
    const RowGrid g = row_grid(p.batch, unit_chunks(p.hidden), 1);
    return launch(gates_plain<kCell, T>, {g.grid, g.block, 0, s}, p, wide);
  });
}

}  // namespace dlops::lstm
