// The body of launch_gates_backward_*.cu: one file per element type, so that they compile side by side.
#pragma once
#include "gates_backward.cuh"
#include "launch_parts.h"
#include "with_cell.h"

namespace dlops::lstm {

template <class T>
int gates_backward_of(const GatesBackwardParams& p, dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const bool wide = wide_units<T>(p.hidden, p.h, p.c, p.dh_out, p.dc_out, p.dgates_x, p.dgates_h,
                                  p.db_hh_rows, p.dh, p.dc) &&
                    wide_units<float>(p.hidden, p.saved, p.hat, p.norm_weight, p.cell_weight, p.cell_bias,
                                      p.dnorm_weight, p.dcell_weight, p.dcell_bias);
  return with_cell(p.cell, [&](auto cell) -> int {
    constexpr Cell kCell = decltype(cell)::value;
    if (p.norm_weight || p.cell_weight) {
      const bool sums = p.dnorm_weight || p.dcell_weight || p.dcell_bias;
      const int64_t parts = sums ? gates_parts(p.batch) : p.batch;
      const RowGrid g = sample_grid(parts, p.hidden, kNormBackThreads);
      return launch(gates_backward_normalised<kCell, T>, {g.grid, g.block, 0, s}, p, parts, wide);
    }
    const RowGrid g = row_grid(p.batch, unit_chunks(p.hidden), 1);
    return launch(gates_backward_plain<kCell, T>, {g.grid, g.block, 0, s}, p, wide);
  });
}

}  // namespace dlops::lstm
