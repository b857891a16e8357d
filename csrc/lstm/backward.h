// The backward pass of a sequence: through the steps from the last to the first, and after each chunk of them its part of the
// gradients of x, weights and biases. Threads meet after every half of a step: the element-wise half is shared out by
// samples (and units), the product with W_hh by its columns.
#pragma once
#include "../cpu/parallel.h"
#include "backward_chunk.h"

namespace dlops {
namespace {

template <class T>
struct BackwardSweep {
  const BackwardState& s;
  int64_t member, members;

  void meet() const {
    if (members > 1) team_barrier();
  }
  // f(i) for this member's share of [0, n).
  template <class F>
  void share(int64_t n, F f) const {
    for (int64_t i = member; i < n; i += members) f(i);
  }
  float* work() const { return s.members + member * s.member_floats; }

  void run() const {
    start();
    meet();
    for (int64_t end = s.order.steps; end > 0;) {
      const Steps chunk{s.chunk_begin(end), end};
      for (int64_t step = end - 1; step >= chunk.begin; step--) back(step, chunk.begin);
      const ChunkGradients<T> gradients(s, chunk);
      const int64_t parts = ceil_div(gradients.rows, 16);
      share(parts, [&](int64_t i) { gradients.pack(i * 16, lesser(i * 16 + 16, gradients.rows)); });
      meet();
      gradients.run(member, members, work());
      meet();
      end = chunk.begin;
    }
    finish();
  }

  // ---- before the last step ----

  void start() const {
    const RecurrenceBackwardParams& p = s.p;
    pack_weight(p.w_hh, s.w_hh, p.state);
    pack_weight(p.w_hr, s.w_hr, p.hidden);
    pack_weight(p.w_ih, s.w_ih, p.input);
    if (member == 0)
      for (int64_t j = 0; j < greater(s.state_row(), s.unit_row()); j += kLanes) store(s.zeros + j, zero());
    share(p.batch, [&](int64_t slot) {
      const int64_t b = s.order.sample(slot);
      widen(p.dhn, b, p.state, s.dh + slot * s.state_row());
      widen(p.dcn, b, p.hidden, s.dc + slot * s.unit_row());
      widen(p.c0, b, p.hidden, s.c0 + slot * s.unit_row());
      if (!p.offsets)
        for (int64_t t = p.length(b); t < p.steps; t++) clear_row(p.row(t, b));
    });
    if (s.order.steps == 0 && member == 0) clear_sums();
  }
  void pack_weight(const void* w, const RightOperand& panels, int64_t columns) const {
    if (!panels.data || panels.stride) return;
    share(ceil_div(panels.depth, 16), [&](int64_t i) {
      for (int64_t k = i * 16; k < lesser(i * 16 + 16, panels.depth); k++)
        pack_row(static_cast<const T*>(w) + k * columns, nullptr, columns, k, panels.depth, panels.columns,
                 const_cast<float*>(panels.data));
    });
  }
  static void widen(const void* matrix, int64_t row, int64_t n, float* out) {
    const T* from = static_cast<const T*>(matrix) + row * n;
    for_units(0, n, [&](int64_t j, auto lanes) { store(out + j, matrix ? get(from + j, lanes) : zero()); });
  }
  static void clear(float* p, int64_t n) {
    if (p) memset(p, 0, static_cast<size_t>(n) * sizeof(float));
  }
  void clear_row(int64_t row) const {
    const RecurrenceBackwardParams& p = s.p;
    if (p.dx) memset(static_cast<T*>(p.dx) + row * p.input, 0, static_cast<size_t>(p.input) * sizeof(T));
    if (p.dgates_x) clear(p.dgates_x + row * s.width, s.width);
    if (p.dgates_h) clear(p.dgates_h + row * s.width, s.width);
  }
  void clear_sums() const {
    const RecurrenceBackwardParams& p = s.p;
    for (const WeightGradient& w : {s.dw_ih, s.dw_hh, s.dw_hr}) clear(w.out, w.rows * w.columns);
    for (float* sum : {p.db_ih, p.db_hh, p.dnorm_weight}) clear(sum, s.width);
    for (float* sum : {p.dcell_weight, p.dcell_bias}) clear(sum, p.hidden);
  }

  // ---- a step ----

  void back(int64_t step, int64_t chunk_begin) const {
    const RecurrenceBackwardParams& p = s.p;
    const int64_t n = s.order.active[step], base = s.row(0, step, chunk_begin);
    if (s.projects()) {
      by_units(step, chunk_begin, p.state, [&](const SampleStep& at, int64_t begin, int64_t end) {
        output_gradient<T>(s, at, begin, end);
      });
      meet();
      product(n, s.dh_new + base * s.state_row(), s.state_row(), s.w_hr, false, s.dh_units, s.unit_row());
      meet();
    }
    by_units(step, chunk_begin, p.hidden, [&](const SampleStep& at, int64_t begin, int64_t end) {
      if (!s.projects()) output_gradient<T>(s, at, begin, end);
      gate_gradients<T>(s, at, begin, end, work());
    });
    meet();
    if (step > 0 || p.dh0) {
      const float* d = s.dgates_h + base * s.gate_row;
      if (p.dropout)
        product(n, d, s.gate_row, s.w_hh, false, s.through, s.state_row());
      else
        product(n, d, s.gate_row, s.w_hh, true, s.dh, s.state_row());
      meet();
    }
  }

  // f(sample, begin, end): whole samples, or with more than one thread blocks of their units where that is possible.
  template <class F>
  void by_units(int64_t step, int64_t chunk_begin, int64_t units, F f) const {
    const bool whole = members == 1 || s.p.norm_weight || s.p.cell_weight;
    const int64_t block = whole ? units : 8 * kLanes, blocks = ceil_div(units, block);
    share(s.order.active[step] * blocks, [&](int64_t i) {
      const int64_t begin = i % blocks * block;
      f(SampleStep(s, step, i / blocks, chunk_begin), begin, lesser(begin + block, units));
    });
  }

  // This member's columns of C [n, ..] (+)= A W; more threads than panels share the rows too.
  void product(int64_t n, const float* a, int64_t a_row, const RightOperand& w, bool add, float* c,
               int64_t c_row) const {
    const int64_t panels = w.count(), strips = ceil_div(n, kStrip);
    const int64_t row_parts = greater(1, lesser(members / panels, strips)), parts = members / row_parts;
    if (member >= parts * row_parts) return;
    const int64_t column = member / row_parts, row = member % row_parts;
    const int64_t first = strips * row / row_parts * kStrip,
                  last = lesser(n, strips * (row + 1) / row_parts * kStrip);
    multiply_panels(last - first, a + first * a_row, a_row, w, panels * column / parts,
                    panels * (column + 1) / parts, add, c + first * c_row, c_row, work());
  }

  // ---- after the first step ----

  void finish() const {
    const RecurrenceBackwardParams& p = s.p;
    share(p.batch, [&](int64_t slot) {
      const int64_t b = s.order.sample(slot), length = p.length(b);
      const bool stepped = length > 0, cut = stepped && p.reset && p.reset[place(p, 0, b).row];
      const float* dh = cut ? s.zeros : s.dh + slot * s.state_row();
      const float* dc = cut ? s.zeros : s.dc + slot * s.unit_row();
      const float* through = p.dropout && stepped && !cut ? s.through + slot * s.state_row() : nullptr;
      T *dh0 = static_cast<T*>(p.dh0) + b * p.state, *dc0 = static_cast<T*>(p.dc0) + b * p.hidden;
      if (p.dh0)
        for_units(0, p.state, [&](int64_t j, auto lanes) {
          Vec d = load(dh + j);
          if (through) d = fma(get(p.dropout + b * p.state + j, lanes), load(through + j), d);
          put(dh0 + j, d, lanes);
        });
      if (p.dc0) for_units(0, p.hidden, [&](int64_t j, auto lanes) { put(dc0 + j, load(dc + j), lanes); });
    });
    for (const WeightGradient& w : {s.dw_ih, s.dw_hh, s.dw_hr})
      if (w.out && w.sum != w.out && s.order.steps > 0)
        share(w.rows, [&](int64_t row) {
          memcpy(w.out + row * w.columns, w.sum + row * w.row(),
                 static_cast<size_t>(w.columns) * sizeof(float));
        });
  }
};

// As many as have some microseconds of products between two barriers.
inline int useful_threads(const RecurrenceProblem& p) {
  const int64_t products = p.batch * p.gates() * p.hidden * (p.state + p.input);
  return static_cast<int>(lesser(p.threads, 1 + products / (1 << 17)));
}

template <class T>
void run_backward(const RecurrenceBackwardParams& p) {
  const cpu::Scratch entries(static_cast<size_t>(order_entries(p)) * sizeof(int64_t));
  const Order order = order_samples(p, reinterpret_cast<int64_t*>(entries.floats()));
  BackwardState s(p, order);
  Arena arena{nullptr};
  s.layout(arena);
  const cpu::Scratch memory(static_cast<size_t>(arena.used) * sizeof(float));
  arena = {memory.floats()};
  s.layout(arena);
  team(useful_threads(p),
       [&](int64_t member, int64_t members) { BackwardSweep<T>{s, member, members}.run(); });
}

}  // namespace
}  // namespace dlops
