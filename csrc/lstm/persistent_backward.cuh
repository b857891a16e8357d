// The derivative on the rungs `persistent` and `fused_cell`: the same turns as forward (persistent.cuh), from the last step to
// the first. Turn i first ends step T - i, whose gradients of the gates were exchanged, by taking them through W_hh to h;
// then it takes the gradients of h and c through the gates of step T - 1 - i and exchanges those. So there are T + 1.
#pragma once
#include "cells_backward.cuh"
#include "persistent.cuh"

namespace dlops::lstm {

constexpr KernelInfo kFusedBackward = DLOPS_LSTM_KERNEL(
    "recurrence_backward", "fused_cell", "16 samples x 8 units, or 32 x 16", "recurrence_turns");
constexpr KernelInfo kPersistentBackward = DLOPS_LSTM_KERNEL(
    "recurrence_backward", "persistent", "16 samples x 8 units, or 32 x 16", "recurrence_turns");
template <class T_, Cell kCell_>
struct Backward {
  using T = T_;
  using Params = RecurrenceBackwardParams;
  static constexpr Cell kCell = kCell_;
  static constexpr int kGatesOf = kGates<kCell>, kColumns = 1;
  static constexpr int kChains = 2;
  static constexpr bool kUnitsFirst = true;

  static DLOPS_DEVICE int64_t weight(const RecurrenceProblem& p, int64_t unit, int, int gate, int64_t k) {
    return (gate * p.hidden + k) * p.hidden + unit;
  }
  static DLOPS_DEVICE float first_exchanged(const Params&, int64_t, int64_t) { return 0.f; }
  // h, c: the gradients of the state after the step, but what W_hh takes back.
  static DLOPS_DEVICE void start(const Params&, const Turns& turns, int64_t i) {
    turns.h[i] = turns.c[i] = 0.f;
  }

  // What finishing needs from memory, as it lies there (see Forward). Of the step that ends:
  bool ends, last;
  uint8_t ended_reset;
  float dropout, dh, dc;
  T dhn, dcn;
  // Of the step whose gates are next; before: c (lstm) or h, as it was given or as it was saved:
  Place at;
  uint8_t reset, kept_h, kept_c;
  float saved[kSaved<kCell>], before, dc_after;
  T dy, given_before;

  DLOPS_DEVICE void load(const Params& p, const Turns& turns, const Element& cell, int64_t turn) {
    const int64_t step = p.steps - 1 - turn, of_state = cell.sample * p.hidden + cell.unit;
    const int64_t length = p.length(cell.sample);
    ends = step + 1 < length;
    last = step == length - 1;  // -1: of a sample without elements
    if (ends && p.reset) ended_reset = p.reset[place(p, step + 1, cell.sample).row];
    if (p.dropout) dropout = p.dropout[of_state];
    dh = turns.h[of_state];
    if (last && p.dhn) dhn = static_cast<const T*>(p.dhn)[of_state];
    if constexpr (kCell == Cell::lstm) {
      dc = turns.c[of_state];
      if (last && p.dcn) dcn = static_cast<const T*>(p.dcn)[of_state];
    }
    if (step < 0) return;
    at = place(p, step, cell.sample);
    if (!at.there) return;
    const int64_t i = at.row * p.hidden + cell.unit, i_before = at.before * p.hidden + cell.unit;
    if (p.reset) reset = p.reset[at.row];
    if (p.dy) dy = static_cast<const T*>(p.dy)[i];
    if (p.keep_h) kept_h = p.keep_h[i];
#pragma unroll
    for (int s = 0; s < kSaved<kCell>; s++)
      saved[s] = p.saved[(at.row * kSaved<kCell> + s) * p.hidden + cell.unit];
    if constexpr (kCell == Cell::lstm) {
      if (p.keep_c) kept_c = p.keep_c[i];
      if (p.dc) dc_after = p.dc[i];
      if (at.first && p.c0) given_before = static_cast<const T*>(p.c0)[of_state];
      if (!at.first) before = p.c[i_before];
    } else if constexpr (kCell == Cell::gru) {
      const void* h = at.first ? p.h0 : p.y;
      if (h) given_before = static_cast<const T*>(h)[at.first ? of_state : i_before];
    }
  }

  // The state before the step.
  DLOPS_DEVICE float state_before(const Params& p) const {
    if (kCell == Cell::rnn_tanh || (p.reset && reset)) return 0.f;
    if (kCell == Cell::lstm && !at.first) return before;
    const bool given = !at.first || (kCell == Cell::lstm ? p.c0 : p.h0);
    return given ? static_cast<float>(given_before) : 0.f;
  }

  DLOPS_DEVICE Gradients<kCell> gradients(const Params& p, float before, float dh, float dc,
                                          float tanh_c) const {
    if constexpr (kCell == Cell::rnn_tanh)
      if (p.cell == Cell::rnn_relu) {
        const auto d = derive<Cell::rnn_relu>(saved, before, dh, dc, tanh_c);
        return {{d.x[0]}, {d.h[0]}, d.before};
      }
    return derive<kCell>(saved, before, dh, dc, tanh_c);
  }

  DLOPS_DEVICE void finish(const Params& p, const Turns& turns, const Element& cell, int64_t turn,
                           const float (&product)[1], T* exchange) {
    const int64_t step = p.steps - 1 - turn, of_state = cell.sample * p.hidden + cell.unit;
    if (ends) dh = p.reset && ended_reset ? 0.f : p.dropout ? fmaf(dropout, product[0], dh) : product[0] + dh;
    if (last) dh = p.dhn ? static_cast<float>(dhn) : 0.f, dc = p.dcn ? static_cast<float>(dcn) : 0.f;
    if (step < 0) {
      if (p.dh0) static_cast<T*>(p.dh0)[of_state] = T(dh);
      if (kCell == Cell::lstm && p.dc0) static_cast<T*>(p.dc0)[of_state] = T(dc);
      return;
    }
    if (!at.there) return pad_gradients(p, at.row, cell.unit);

    if (p.dy) dh += static_cast<float>(dy);
    const float keep_h = p.keep_h ? kept_h != 0 : p.zoneout_h, dh_after = part(1.f - keep_h, dh);
    float keep_c = 0.f, tanh_c = 0.f, dc_all = 0.f;
    const float before = state_before(p);
    if constexpr (kCell == Cell::lstm) {
      if (p.dc) dc += dc_after;
      keep_c = p.keep_c ? kept_c != 0 : p.zoneout_c;
      tanh_c = tanhf(next_c(saved, before));
      dc_all = part(1.f - keep_c, dc) + through_output(saved, dh_after, tanh_c);
    }
    const int64_t gates = at.row * kGatesOf * p.hidden + cell.unit;
    const bool was_reset = p.reset && reset;
    const Gradients<kCell> d = gradients(p, before, dh_after, dc_all, tanh_c);
#pragma unroll
    for (int gate = 0; gate < kGatesOf; gate++) {
      exchange[gate * turns.segment + cell.unit] = T(d.h[gate]);
      if (p.dgates_x) p.dgates_x[gates + gate * p.hidden] = d.x[gate];
      if (p.dgates_h) p.dgates_h[gates + gate * p.hidden] = d.h[gate];
    }
    turns.h[of_state] = was_reset ? 0.f : part(keep_h, dh) + (kCell == Cell::lstm ? 0.f : d.before);
    if constexpr (kCell == Cell::lstm) turns.c[of_state] = was_reset ? 0.f : part(keep_c, dc) + d.before;
  }
};

}  // namespace dlops::lstm
