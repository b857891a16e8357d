// The element-wise half of one step, forward and backward, for cells whose products come from elsewhere. One sample is a row;
// nothing is summed, so rows and vectors may be done in any order.
#pragma once
#include "../cpu/parallel.h"
#include "cell.h"
#include "cell_gradient.h"

namespace dlops {
namespace {

// Gate g of a row [gates, H] of T, or zeros.
template <class T, class Lanes>
DLOPS_INLINE Vec gate(const void* row, int64_t g, int64_t hidden, int64_t j, Lanes lanes) {
  return row ? get(static_cast<const T*>(row) + g * hidden + j, lanes) : zero();
}
// Element j of row b of [B, H].
template <class T, class Lanes>
DLOPS_INLINE Vec state(const void* matrix, int64_t b, int64_t hidden, int64_t j, Lanes lanes) {
  return matrix ? get(static_cast<const T*>(matrix) + b * hidden + j, lanes) : zero();
}
template <class T, class Lanes>
DLOPS_INLINE void put_state(void* matrix, int64_t b, int64_t hidden, int64_t j, Vec v, Lanes lanes) {
  if (matrix) put(static_cast<T*>(matrix) + b * hidden + j, v, lanes);
}

// As `advance` takes them: b_ih + b_hh, but for gru's n, where r multiplies the second alone.
template <Cell cell, class T, class Lanes>
DLOPS_INLINE void load_biases(const GatesParams& p, int64_t j, Lanes lanes, Vec (&bias)[biases(cell)]) {
  constexpr int kGates = gates_of(cell);
#pragma GCC unroll 4
  for (int g = 0; g < kGates; g++) {
    const Vec input = gate<T>(p.b_ih, g, p.hidden, j, lanes), own = gate<T>(p.b_hh, g, p.hidden, j, lanes);
    const bool apart = cell == Cell::gru && g == 2;
    bias[g] = apart ? input : input + own;
    if (apart) bias[kGates] = own;
  }
}

template <Cell cell, class T>
void gates_row(const GatesParams& p, int64_t b) {
  constexpr int kGates = gates_of(cell), kSaved = saved_parts(cell);
  const int64_t hidden = p.hidden;
  const T* gates_x = static_cast<const T*>(p.gates_x) + b * kGates * hidden;
  const T* gates_h = static_cast<const T*>(p.gates_h) + b * kGates * hidden;
  const Zoneout zoneout_h = zoneout_of(p.keep_h, b * hidden, p.zoneout_h),
                zoneout_c = zoneout_of(p.keep_c, b * hidden, p.zoneout_c);
  for_units(0, hidden, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    Vec input[kGates], own[kGates], bias[biases(cell)];
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++) {
      input[g] = gate<T>(gates_x, g, hidden, j, lanes);
      own[g] = gate<T>(gates_h, g, hidden, j, lanes);
    }
    load_biases<cell, T>(p, j, lanes, bias);
    const Vec h = state<T>(p.h, b, hidden, j, lanes), c = state<T>(p.c, b, hidden, j, lanes);
    const Units<cell> u = advance<cell>(input, own, bias, h, c, p.saved);
    put_state<T>(p.h_out, b, hidden, j, zoneout_h.mix(j, lanes, h, u.h), lanes);
    if (cell == Cell::lstm) put_state<T>(p.c_out, b, hidden, j, zoneout_c.mix(j, lanes, c, u.c), lanes);
#pragma GCC unroll 4
    for (int k = 0; k < kSaved; k++)
      if (p.saved) put(p.saved + (b * kSaved + k) * hidden + j, u.saved[k], lanes);
  });
}

template <Cell cell, class T>
void gates_backward_row(const GatesBackwardParams& p, int64_t b) {
  constexpr int kGates = gates_of(cell), kSaved = saved_parts(cell);
  const int64_t hidden = p.hidden;
  const Zoneout zoneout_h = zoneout_of(p.keep_h, b * hidden, p.zoneout_h),
                zoneout_c = zoneout_of(p.keep_c, b * hidden, p.zoneout_c);
  for_units(0, hidden, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    const Saved<kSaved> saved(p.saved + b * kSaved * hidden, hidden, j, lanes);
    auto put_gates = [&](void* matrix, auto... gradients) __attribute__((always_inline)) {
      if (!matrix) return;
      T* to = static_cast<T*>(matrix) + b * kGates * hidden + j;
      ((put(to, gradients, lanes), to += hidden), ...);
    };
    Vec dh = state<T>(p.dh_out, b, hidden, j, lanes);
    Vec dh_before = zoneout_h.split(j, lanes, dh);
    if constexpr (cell == Cell::lstm) {
      const Vec before = state<T>(p.c, b, hidden, j, lanes);
      Vec dc = state<T>(p.dc_out, b, hidden, j, lanes);
      const Vec kept = zoneout_c.split(j, lanes, dc);
      const Vec squashed = tanh(new_cell(saved, before));
      dc = fma(dh * saved.part[3], one_minus_square(squashed), dc);
      const LstmGradient d = lstm_gradient(saved, before, squashed, dh, dc);
      put_gates(p.dgates_x, d.i, d.f, d.g, d.o);
      put_gates(p.dgates_h, d.i, d.f, d.g, d.o);
      put_state<T>(p.dc, b, hidden, j, d.c_before + kept, lanes);
    } else if constexpr (cell == Cell::gru) {
      const GruGradient d = gru_gradient(saved, state<T>(p.h, b, hidden, j, lanes), dh);
      put_gates(p.dgates_x, d.r, d.z, d.n);
      put_gates(p.dgates_h, d.r, d.z, d.hidden_n);
      dh_before = dh_before + d.h_before;
    } else {
      const Vec d = rnn_gradient(cell, saved.part[0], dh);
      put_gates(p.dgates_x, d);
      put_gates(p.dgates_h, d);
    }
    put_state<T>(p.dh, b, hidden, j, dh_before, lanes);
  });
}

// f(sample) for the batch: rows of one task are worth waking a thread for.
template <class F>
void for_rows(int threads, int64_t batch, int64_t hidden, F f) {
  const int64_t rows = 8192 / hidden + 1, tasks = (batch + rows - 1) / rows;
  parallel_for(threads, tasks, [&](int64_t task) {
    const int64_t end = (task + 1) * rows < batch ? (task + 1) * rows : batch;
    for (int64_t b = task * rows; b < end; b++) f(b);
  });
}

}  // namespace
}  // namespace dlops
