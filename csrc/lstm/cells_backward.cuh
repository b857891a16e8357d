// The derivative of the first rung: two launches per step, from the last to the first. One takes the gradients of h and c
// through the gates, a thread per unit and sample; the other takes those of W_hh h back to h.
#pragma once
#include "cells.cuh"

namespace dlops::lstm {

// Workspace, float32. Between steps dh and dc are the gradients of the state between them; within a step dh is what does
// not come by W_hh, and dgates what W_hh takes back.
struct Carried {
  float *dh, *dc;  // [B, H]
  float* dgates;   // [B, G H]
};
inline int64_t carried_size(const RecurrenceProblem& p) { return p.batch * p.hidden * (2 + p.gates()); }
inline Carried carried(const RecurrenceBackwardParams& p) {
  const int64_t size = p.batch * p.hidden;
  return {p.workspace, p.workspace + size, p.workspace + 2 * size};
}

// Padding has no gradient.
DLOPS_DEVICE void pad_gradients(const RecurrenceBackwardParams& p, int64_t row, int64_t unit) {
  if (p.offsets) return;
  for (int64_t gate = 0; gate < p.gates(); gate++) {
    const int64_t j = (row * p.gates() + gate) * p.hidden + unit;
    if (p.dgates_x) p.dgates_x[j] = 0.f;
    if (p.dgates_h) p.dgates_h[j] = 0.f;
  }
}

template <Cell kCell, class T>
DLOPS_DEVICE void gates_of_unit(const RecurrenceBackwardParams& p, const Carried& carry, const Place& at,
                                int64_t b, int64_t unit) {
  const int64_t i = at.row * p.hidden + unit, of_state = b * p.hidden + unit;
  const bool reset = p.reset && p.reset[at.row];
  float saved[kSaved<kCell>];
  for (int s = 0; s < kSaved<kCell>; s++) saved[s] = p.saved[(at.row * kSaved<kCell> + s) * p.hidden + unit];

  const float dh = (at.last ? state_at<T>(p.dhn, of_state) : carry.dh[of_state]) + state_at<T>(p.dy, i);
  const float share_h = Zoneout{p.keep_h, p.zoneout_h}.share(i);
  const float dh_after = part(1.f - share_h, dh);
  float dh_before = part(share_h, dh);

  float before, dc_after = 0, dc_before = 0, tanh_c = 0;
  if constexpr (kCell == Cell::lstm) {
    before = reset ? 0.f : at.first ? state_at<T>(p.c0, of_state) : p.c[at.before * p.hidden + unit];
    const float dc = (at.last ? state_at<T>(p.dcn, of_state) : carry.dc[of_state]) + (p.dc ? p.dc[i] : 0.f);
    const float share_c = Zoneout{p.keep_c, p.zoneout_c}.share(i);
    tanh_c = tanhf(next_c(saved, before));
    dc_after = part(1.f - share_c, dc) + through_output(saved, dh_after, tanh_c);
    dc_before = part(share_c, dc);
  } else {
    before = h_before<T>(p, at, b, unit);
  }
  const Gradients<kCell> d = derive<kCell>(saved, before, dh_after, dc_after, tanh_c);
#pragma unroll
  for (int gate = 0; gate < kGates<kCell>; gate++) {
    const int64_t j = (at.row * kGates<kCell> + gate) * p.hidden + unit;
    if (p.dgates_x) p.dgates_x[j] = d.x[gate];
    if (p.dgates_h) p.dgates_h[j] = d.h[gate];
    carry.dgates[(b * kGates<kCell> + gate) * p.hidden + unit] = d.h[gate];
  }
  (kCell == Cell::lstm ? dc_before : dh_before) += d.before;
  carry.dh[of_state] = reset ? 0.f : dh_before;
  if (kCell == Cell::lstm) carry.dc[of_state] = reset ? 0.f : dc_before;
}

constexpr KernelInfo kCellsGates =
    DLOPS_LSTM_KERNEL("recurrence_backward", "cells", "1 unit per thread", "cells_gates");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kRowThreads, 4)
    cells_gates(const RecurrenceBackwardParams p, const Carried carry, const int64_t step) {
  for (int64_t b = first_row(); b < p.batch; b += row_step()) {
    const Place at = place(p, step, b);
    for (int64_t unit = first_chunk(1); unit < p.hidden; unit += chunk_step(1)) {
      if (at.there)
        gates_of_unit<kCell, T>(p, carry, at, b, unit);
      else
        pad_gradients(p, at.row, unit);
    }
  }
}

// Element k of dgates_h W_hh, of one sample.
template <class T>
DLOPS_DEVICE float state_gradient(const RecurrenceBackwardParams& p, const float* dgates, int64_t k) {
  const T* w = static_cast<const T*>(p.w_hh);
  const int64_t rows = p.gates() * p.hidden;
  float sum = 0;
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t end = first + kChunk < rows ? first + kChunk : rows;
    float part = 0;
    for (int64_t j = first; j < end; j++)
      part = fmaf(dgates[j], static_cast<float>(w[j * p.hidden + k]), part);
    sum += part;
  }
  return sum;
}

constexpr KernelInfo kCellsState =
    DLOPS_LSTM_KERNEL("recurrence_backward", "cells", "1 element of h per thread", "cells_state");
template <class T>
__global__ void __launch_bounds__(kRowThreads, 4)
    cells_state(const RecurrenceBackwardParams p, const Carried carry, const int64_t step) {
  for (int64_t b = first_row(); b < p.batch; b += row_step()) {
    const Place at = place(p, step, b);
    const bool reset = at.there && p.reset && p.reset[at.row];
    for (int64_t k = first_chunk(1); k < p.hidden; k += chunk_step(1)) {
      const int64_t i = b * p.hidden + k;
      float dh = 0, dc = 0;
      if (at.there) {
        const float dropout = p.dropout ? p.dropout[i] : 1.f;
        if (!reset)
          dh = fmaf(dropout, state_gradient<T>(p, carry.dgates + b * p.gates() * p.hidden, k), carry.dh[i]);
        carry.dh[i] = dh;
        if (p.cell == Cell::lstm) dc = carry.dc[i];
      } else if (at.first) {  // no elements: the state went through
        dh = state_at<T>(p.dhn, i);
        dc = state_at<T>(p.dcn, i);
      }
      if (at.first && p.dh0) static_cast<T*>(p.dh0)[i] = T(dh);
      if (at.first && p.dc0) static_cast<T*>(p.dc0)[i] = T(dc);
    }
  }
}

}  // namespace dlops::lstm
