// The first rung: a launch per step, a thread per unit and sample that sums over all of h and finishes its gates. The order
// of a sum depends on H alone. h runs as it is rounded into y, where the next step reads it; c runs in float32.
#pragma once
#include "../catalogue.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "cell.cuh"
#include "sequence.h"

namespace dlops::lstm {

#define DLOPS_LSTM_KERNEL(op, variant, tile, name) \
  DLOPS_CUDA_KERNEL(op, "lstm", variant, "sm_75 sm_80 sm_90a", "f32 f16 bf16", tile, name, 0)

constexpr int kChunk =
    256;  // terms that one float32 takes before they join the total: long sums lose fewer digits

// An element of a state that may be absent: then it is 0.
template <class T>
DLOPS_DEVICE float state_at(const void* state, int64_t i) {
  return state ? static_cast<float>(static_cast<const T*>(state)[i]) : 0.f;
}

// Element k of sample b's h before the step: after the reset, before the dropout. P: RecurrenceParams or its backward.
template <class T, class P>
DLOPS_DEVICE float h_before(const P& p, const Place& at, int64_t b, int64_t k) {
  if (p.reset && p.reset[at.row]) return 0.f;
  return at.first ? state_at<T>(p.h0, b * p.state + k)
                  : static_cast<float>(static_cast<const T*>(p.y)[at.before * p.state + k]);
}
// What W_hh multiplies.
template <class T, class P>
DLOPS_DEVICE float h_dropped(const P& p, const Place& at, int64_t b, int64_t k) {
  const float h = h_before<T>(p, at, b, k);
  return p.dropout ? h * p.dropout[b * p.state + k] : h;
}

// ---- forward ----

// W_hh h of one unit's gates. W_hh: [G H, H].
template <Cell kCell, class T>
DLOPS_DEVICE void recurrent_product(const RecurrenceParams& p, const Place& at, int64_t b, int64_t unit,
                                    float (&sums)[kGates<kCell>]) {
  const T* w = static_cast<const T*>(p.w_hh) + unit * p.hidden;
  const int64_t gate_stride = p.hidden * p.hidden;
  for (int gate = 0; gate < kGates<kCell>; gate++) sums[gate] = 0;
  for (int64_t first = 0; first < p.hidden; first += kChunk) {
    const int64_t end = first + kChunk < p.hidden ? first + kChunk : p.hidden;
    float part[kGates<kCell>] = {};
#pragma unroll 2
    for (int64_t k = first; k < end; k++) {
      const float h = h_dropped<T>(p, at, b, k);
#pragma unroll
      for (int gate = 0; gate < kGates<kCell>; gate++)
        part[gate] = fmaf(static_cast<float>(w[gate * gate_stride + k]), h, part[gate]);
    }
#pragma unroll
    for (int gate = 0; gate < kGates<kCell>; gate++) sums[gate] += part[gate];
  }
}

// A sample that has ended before this step: its padding is zeros, and one without elements keeps its state.
template <class T>
DLOPS_DEVICE void pad_unit(const RecurrenceParams& p, const Place& at, int64_t b, int64_t unit) {
  const int64_t i = at.row * p.hidden + unit, of_state = b * p.hidden + unit;
  if (!p.offsets) {
    static_cast<T*>(p.y)[i] = T(0.f);
    if (p.c) p.c[i] = 0.f;
  }
  if (at.first) {
    static_cast<T*>(p.hn)[of_state] = T(state_at<T>(p.h0, of_state));
    if (p.cn) static_cast<T*>(p.cn)[of_state] = T(state_at<T>(p.c0, of_state));
  }
}

template <Cell kCell, class T>
DLOPS_DEVICE void step_unit(const RecurrenceParams& p, const Place& at, int64_t b, int64_t unit) {
  const int64_t i = at.row * p.hidden + unit, of_state = b * p.hidden + unit;
  float x[kGates<kCell>], h[kGates<kCell>], saved[kSaved<kCell>];
  recurrent_product<kCell, T>(p, at, b, unit, h);
#pragma unroll
  for (int gate = 0; gate < kGates<kCell>; gate++) {
    const int64_t j = gate * p.hidden + unit;
    x[gate] = p.gates_x[at.row * p.gates() * p.hidden + j] + state_at<T>(p.b_ih, j);
    h[gate] += state_at<T>(p.b_hh, j);
  }
  activate<kCell>(x, h, saved);
  if (p.saved)
    for (int s = 0; s < kSaved<kCell>; s++)
      p.saved[(at.row * kSaved<kCell> + s) * p.hidden + unit] = saved[s];

  float* c_running = p.workspace + of_state;  // [B, H]
  float tanh_c = 0;
  if constexpr (kCell == Cell::lstm) {
    const bool reset = p.reset && p.reset[at.row];
    const float before = reset ? 0.f : at.first ? state_at<T>(p.c0, of_state) : *c_running;
    const float after = next_c(saved, before);
    tanh_c = tanhf(after);
    const float c = mix(Zoneout{p.keep_c, p.zoneout_c}.share(i), before, after);
    *c_running = c;
    if (p.c) p.c[i] = c;
    if (at.last) static_cast<T*>(p.cn)[of_state] = T(c);
  }
  const float before = h_before<T>(p, at, b, unit);
  const float after = next_h<kCell>(saved, before, tanh_c);
  const T rounded = T(mix(Zoneout{p.keep_h, p.zoneout_h}.share(i), before, after));
  static_cast<T*>(p.y)[i] = rounded;
  if (at.last) static_cast<T*>(p.hn)[of_state] = rounded;
}

constexpr KernelInfo kCellsStep = DLOPS_LSTM_KERNEL("recurrence", "cells", "1 unit per thread", "cells_step");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kRowThreads, 4) cells_step(const RecurrenceParams p, const int64_t step) {
  for (int64_t b = first_row(); b < p.batch; b += row_step()) {
    const Place at = place(p, step, b);
    for (int64_t unit = first_chunk(1); unit < p.hidden; unit += chunk_step(1)) {
      if (at.there)
        step_unit<kCell, T>(p, at, b, unit);
      else
        pad_unit<T>(p, at, b, unit);
    }
  }
}

// What W_hh multiplied in every step, [rows, P]: with it one product gives dw_hh. Zeros in the padding.
constexpr KernelInfo kHBefore =
    DLOPS_LSTM_KERNEL("recurrence_backward", "fused_cell", "1 row per x threads", "gather_h_before");
template <class T>
__global__ void __launch_bounds__(kRowThreads, 4) gather_h_before(const RecurrenceBackwardParams p) {
  for (int64_t step = blockIdx.z; step < p.steps; step += gridDim.z)
    for (int64_t b = first_row(); b < p.batch; b += row_step()) {
      const Place at = place(p, step, b);
      if (!at.there && p.offsets) continue;
      T* to = static_cast<T*>(p.h_before) + at.row * p.state;
      for (int64_t k = first_chunk(1); k < p.state; k += chunk_step(1))
        to[k] = T(at.there ? h_dropped<T>(p, at, b, k) : 0.f);
    }
}

}  // namespace dlops::lstm
