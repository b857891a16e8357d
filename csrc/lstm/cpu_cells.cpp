// The rung `cells`.
#include <type_traits>

#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "cells_backward.h"
#include "cpu_parts.h"

namespace dlops::DLOPS_PARTS {

const char* cells_refuses(const RecurrenceProblem& p) {
  if (p.norm_weight || p.cell_weight) return "has no LayerNorm";
  if (p.projects()) return "has no projection";
  return nullptr;
}

void cells_forward(const RecurrenceParams& p) {
  const int64_t each = p.input + 2 * p.hidden;
  cpu::Scratch work(static_cast<size_t>(p.batch * each) * sizeof(float));
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    parallel_for(p.threads, p.batch, [&](int64_t b) { forward_sample<T>(p, b, work.floats() + b * each); });
  });
}

void cells_backward(const RecurrenceBackwardParams& p) {
  const int members = p.threads > 1 ? p.threads : 1;
  const int64_t each = 2 * p.hidden + 2 * larger(p.hidden, p.input), width = p.gates() * p.hidden;
  cpu::Scratch work(static_cast<size_t>(members * each) * sizeof(float));
  cpu::Scratch rows(static_cast<size_t>(p.rows * (2 * width + p.hidden)) * sizeof(float));
  float* h = rows.floats() + 2 * p.rows * width;
  const Elements e{p.dgates_x ? p.dgates_x : rows.floats(),
                   p.dgates_h ? p.dgates_h : rows.floats() + p.rows * width, h};
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    team(members, [&](int member, int count) {
      float* mine = work.floats() + member * each;
      for (int64_t b = member; b < p.batch; b += count) backward_sample<T>(p, e, b, mine);
      if (count > 1) team_barrier();
      for (int64_t j = member; j < width; j += count) {
        weight_row(p, e.dgates_x, j, static_cast<const T*>(p.x), p.input, p.dw_ih, mine, p.db_ih);
        weight_row(p, e.dgates_h, j, e.h, p.hidden, p.dw_hh, mine, p.db_hh);
      }
    });
  });
}

}  // namespace dlops::DLOPS_PARTS
