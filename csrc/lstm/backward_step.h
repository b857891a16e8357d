// The element-wise half of a backward step, for one sample or some of its units: the gradient of h', then those of the
// gates and of the state before.
#pragma once
#include "backward_state.h"
#include "cell_gradient.h"

namespace dlops {
namespace {

// One sample at one step.
struct SampleStep {
  int64_t b, slot;
  int64_t element;  // row of the chunk
  Place place;
  bool cut;     // the step after this one began anew: nothing comes back from it
  bool begins;  // this step begins anew: h = c = 0 before it

  SampleStep(const BackwardState& s, int64_t step, int64_t at, int64_t chunk_begin)
      : b(s.order.sample(at)),
        slot(at),
        element(s.row(at, step, chunk_begin)),
        place(dlops::place(s.p, step, b)),
        cut(false),
        begins(false) {
    if (!s.p.reset) return;
    cut = !place.last && s.p.reset[dlops::place(s.p, step + 1, b).row];
    begins = s.p.reset[place.row];
  }
};

// h before the step, as W_hh sees it but for the dropout.
template <class T>
DLOPS_INLINE const T* h_before(const BackwardState& s, const SampleStep& at) {
  const RecurrenceBackwardParams& p = s.p;
  const T* zeros = reinterpret_cast<const T*>(s.zeros);
  if (at.begins) return zeros;
  if (!at.place.first) return static_cast<const T*>(p.y) + at.place.before * p.state;
  return p.h0 ? static_cast<const T*>(p.h0) + at.b * p.state : zeros;
}
DLOPS_INLINE const float* c_before(const BackwardState& s, const SampleStep& at) {
  if (at.begins) return s.zeros;
  return at.place.first ? s.c0 + at.slot * s.unit_row() : s.p.c + at.place.before * s.p.hidden;
}

// dh_new: the gradient of h', from y and from the steps after; dh: that of h before, as far as zoneout passes it by.
template <class T>
void output_gradient(const BackwardState& s, const SampleStep& at, int64_t begin, int64_t end) {
  const RecurrenceBackwardParams& p = s.p;
  const T* dy = p.dy ? static_cast<const T*>(p.dy) + at.place.row * p.state : nullptr;
  float* dh = s.dh + at.slot * s.state_row();
  float* dh_new = s.dh_new + (s.projects() ? at.element : at.slot) * s.state_row();
  const float* after = at.cut ? s.zeros : dh;
  const bool drops = p.dropout && !at.cut && !at.place.last;
  const float *mask = p.dropout + at.b * p.state, *through = s.through + at.slot * s.state_row();
  const Zoneout zoneout = zoneout_of(p.keep_h, at.place.row * p.state, p.zoneout_h);
  for_units(begin, end, [&](int64_t j, auto lanes) {
    Vec d = load(after + j);
    if (drops) d = fma(get(mask + j, lanes), load(through + j), d);
    if (dy) d = get(dy + j, lanes) + d;
    store(dh + j, zoneout.split(j, lanes, d));
    store(dh_new + j, d);
  });
}

// What the functions below read and write for one sample's step.
struct GateRows {
  const float* saved;
  const float* dh;                 // of h' before the projection
  float *dx, *dm;                  // gradients of the gates
  const float *c_before, *dc_out;  // dc_out: of the c that the step returned, or null
  const float* dc_after;
  float* dc;
  float* units;
  Zoneout zoneout_c;

  GateRows(const BackwardState& s, const SampleStep& at)
      : saved(s.p.saved + at.place.row * saved_parts(s.p.cell) * s.p.hidden),
        dh(s.dh_units + at.slot * s.unit_row()),
        dx(s.dgates_x + at.element * s.gate_row),
        dm(s.dgates_m + at.element * s.gate_row),
        c_before(nullptr),
        dc_out(s.p.dc ? s.p.dc + at.place.row * s.p.hidden : nullptr),
        dc_after(at.cut ? s.zeros : s.dc + at.slot * s.unit_row()),
        dc(s.dc + at.slot * s.unit_row()),
        units(s.units ? s.units + at.element * s.unit_row() : nullptr),
        zoneout_c(zoneout_of(s.p.keep_c, at.place.row * s.p.hidden, s.p.zoneout_c)) {}
};

// squash(j, lanes, saved, c_before, dh, dc) returns what the output gate multiplied, and adds to dc what comes of it.
template <class Squash>
DLOPS_INLINE void lstm_gates(int64_t hidden, const GateRows& r, int64_t begin, int64_t end, Squash squash) {
  for_units(begin, end, [&](int64_t j, auto lanes) {
    const Saved<4> saved(r.saved, hidden, j, lanes);
    const Vec before = get(r.c_before + j, lanes), dh = load(r.dh + j);
    Vec dc = load(r.dc_after + j);
    if (r.dc_out) dc = get(r.dc_out + j, lanes) + dc;
    const Vec kept = r.zoneout_c.split(j, lanes, dc);
    const Vec squashed = squash(j, lanes, saved, before, dh, dc);
    const LstmGradient d = lstm_gradient(saved, before, squashed, dh, dc);
    put(r.dx + j, d.i, lanes);
    put(r.dx + hidden + j, d.f, lanes);
    put(r.dx + 2 * hidden + j, d.g, lanes);
    put(r.dx + 3 * hidden + j, d.o, lanes);
    store(r.dc + j, d.c_before + kept);
    if (r.units) store(r.units + j, saved.part[3] * squashed);
  });
}

// h' = o tanh(u), u = LayerNorm(c') weight + bias. For the whole row: tanh(u), and the gradient of c' by way of u.
void normalised_cell(const BackwardState& s, const SampleStep& at, const GateRows& r, float* squashed,
                     float* dc) {
  const int64_t hidden = s.p.hidden;
  const float n = static_cast<float>(hidden);
  const float *weight = s.p.cell_weight, *bias = s.p.cell_bias;
  float *hats = s.cell_hat + at.element * s.unit_row(), *du = s.cell_du + at.element * s.unit_row();
  Vec sum = zero(), squares = zero();
  for_units(0, hidden, [&](int64_t j, auto lanes) {
    const Vec c = new_cell(Saved<4>(r.saved, hidden, j, lanes), get(r.c_before + j, lanes));
    store(hats + j, c);
    sum = sum + within(c, lanes);
  });
  const Vec mean = set1(reduce_add(sum) / n);
  for_units(0, hidden, [&](int64_t j, auto lanes) {
    const Vec d = within(load(hats + j) - mean, lanes);
    squares = fma(d, d, squares);
  });
  const Vec rstd = set1(1.f / __builtin_sqrtf(reduce_add(squares) / n + s.p.eps));
  Vec sum_d = zero(), sum_dhat = zero();
  for_units(0, hidden, [&](int64_t j, auto lanes) {
    const Vec hat = (load(hats + j) - mean) * rstd, w = get(weight + j, lanes);
    const Vec u = bias ? fma(hat, w, get(bias + j, lanes)) : hat * w, t = tanh(u);
    const Vec d = load(r.dh + j) * get(r.saved + 3 * hidden + j, lanes) * one_minus_square(t);
    store(hats + j, hat);
    store(du + j, d);
    store(squashed + j, t);
    sum_d = sum_d + within(d * w, lanes);
    sum_dhat = sum_dhat + within(d * w * hat, lanes);
  });
  const Vec mean_d = set1(reduce_add(sum_d) / n), mean_dhat = set1(reduce_add(sum_dhat) / n);
  for_units(0, hidden, [&](int64_t j, auto lanes) {
    const Vec d = load(du + j) * get(weight + j, lanes);
    store(dc + j, rstd * (d - mean_d - load(hats + j) * mean_dhat));
  });
}

void gru_gates(const RecurrenceProblem& p, const GateRows& r, auto* h_before, float* dh_before, int64_t begin,
               int64_t end) {
  const int64_t hidden = p.hidden;
  for_units(begin, end, [&](int64_t j, auto lanes) {
    const GruGradient d =
        gru_gradient(Saved<4>(r.saved, hidden, j, lanes), get(h_before + j, lanes), load(r.dh + j));
    put(r.dx + j, d.r, lanes);
    put(r.dx + hidden + j, d.z, lanes);
    put(r.dx + 2 * hidden + j, d.n, lanes);
    put(r.dm + j, d.r, lanes);
    put(r.dm + hidden + j, d.z, lanes);
    put(r.dm + 2 * hidden + j, d.hidden_n, lanes);
    store(dh_before + j, load(dh_before + j) + d.h_before);
  });
}

// The LayerNorm of W_hh h: from the gradient of the normalised, weighted product to that of the product.
void normalised_product(const BackwardState& s, const SampleStep& at) {
  const float n = static_cast<float>(s.width);
  const float *hat = s.p.hat + at.place.row * s.width, *weight = s.p.norm_weight,
              *dm = s.dgates_m + at.element * s.gate_row;
  float* dh = s.dgates_h + at.element * s.gate_row;
  Vec sum_d = zero(), sum_dhat = zero();
  for_units(0, s.width, [&](int64_t j, auto lanes) {
    const Vec d = get(dm + j, lanes) * get(weight + j, lanes);
    sum_d = sum_d + d;
    sum_dhat = fma(d, get(hat + j, lanes), sum_dhat);
  });
  const Vec rstd = set1(s.p.rstd[at.place.row]), mean_d = set1(reduce_add(sum_d) / n),
            mean_dhat = set1(reduce_add(sum_dhat) / n);
  for_units(0, s.width, [&](int64_t j, auto lanes) {
    const Vec d = get(dm + j, lanes) * get(weight + j, lanes);
    put(dh + j, rstd * (d - mean_d - get(hat + j, lanes) * mean_dhat), lanes);
  });
}

// Units [begin, end) of a sample; with a LayerNorm they are all of them. work: 2 rows of units.
template <class T>
__attribute__((noinline)) void gate_gradients(const BackwardState& s, const SampleStep& at, int64_t begin,
                                              int64_t end, float* work) {
  const RecurrenceBackwardParams& p = s.p;
  GateRows r(s, at);
  if (p.cell == Cell::lstm) {
    r.c_before = c_before(s, at);
    if (p.cell_weight) {
      float *squashed = work, *dc = work + s.unit_row();
      normalised_cell(s, at, r, squashed, dc);
      lstm_gates(p.hidden, r, begin, end, [&](int64_t j, auto, const Saved<4>&, Vec, Vec, Vec& d) {
        d = d + load(dc + j);
        return load(squashed + j);
      });
    } else {
      lstm_gates(p.hidden, r, begin, end,
                 [](int64_t, auto, const Saved<4>& saved, Vec before, Vec dh, Vec& d) {
                   const Vec t = tanh(new_cell(saved, before));
                   d = fma(dh * saved.part[3], one_minus_square(t), d);
                   return t;
                 });
    }
  } else if (p.cell == Cell::gru) {
    gru_gates(p, r, h_before<T>(s, at), s.dh + at.slot * s.state_row(), begin, end);
  } else {
    for_units(begin, end, [&](int64_t j, auto lanes) {
      put(r.dx + j, rnn_gradient(p.cell, get(r.saved + j, lanes), load(r.dh + j)), lanes);
      if (r.units) store(r.units + j, get(r.saved + j, lanes));
    });
  }
  if (p.norm_weight) normalised_product(s, at);
}

}  // namespace
}  // namespace dlops
