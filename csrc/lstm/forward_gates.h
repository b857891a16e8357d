// What follows the products of a step: its gates, and the extras of params.h.
#pragma once
#include "forward_state.h"
#include "row_norm.h"

namespace dlops {
namespace {

// Time step t, and the one processed next (-1: none).
template <class Element>
struct Step {
  int64_t t, next, active;
  const float* h;  // before the step, [slot][state_row]
  const Element* operand;
  float* h_after;
  Element* operand_after;
};

// The products of one block of units: vector g of a slot at data + slot * row + g * kLanes.
struct BlockProducts {
  const float* data;
  int64_t row;

  BlockProducts(const Slab& slab, const Panels& w, int64_t block)
      : data(slab.vector(block * w.gates, w.group_vectors())), row(slab.row) {}
  const float* slot(int64_t i) const { return data + i * row; }
};

// Columns [column, column + n) of h' of one sample: zoneout, then where h goes: y, the state, the next step's operand.
template <class Product>
DLOPS_INLINE void put_h(const ForwardState<Product>& s, const Step<typename Product::Element>& step,
                        int64_t slot, int64_t column, int n, Vec h) {
  const RecurrenceParams& p = s.p;
  const int64_t sample = s.order.sample(slot), row = p.row(step.t, sample),
                at = slot * s.z.state_row + column;
  if (s.zones_h()) {
    const Vec before = s.resets(row) ? zero() : load(step.h + at);
    h = zoneout(before, h, p.keep_h ? p.keep_h + row * p.state + column : nullptr, p.zoneout_h, n);
  }
  store(step.h_after + at, h);
  store_as(p.dtype, p.y, row * p.state + column, h, n);
  if (s.z.apart && step.next >= 0 && slot < s.order.active[step.next])
    store(step.operand_after + at, s.operand_of(h, sample, p.row(step.next, sample), column, n));
}

// What a step does beside its cell's equations: nothing; writing what the backward pass wants; all extras of params.h.
enum class Beside { nothing, saving, extras };

template <class Product>
Beside beside_of(const ForwardState<Product>& s) {
  const RecurrenceParams& p = s.p;
  const bool zones_c = p.keep_c || p.zoneout_c > 0;
  if (!p.x || p.reset || p.dropout || s.zones_h() || zones_c || p.cell_weight || p.projects())
    return Beside::extras;
  return p.saved || p.c ? Beside::saving : Beside::nothing;
}

// Samples ahead whose lines of `saved` are fetched: they lie far apart and are only written, so nothing else asks for them.
constexpr int64_t kAhead = 6;

// The gates of one block of units, of all samples.
template <Cell cell, Beside kBeside, class Product>
__attribute__((noinline)) void finish_block(const ForwardState<Product>& s,
                                            const Step<typename Product::Element>& step, int64_t block,
                                            BlockProducts input, BlockProducts hidden) {
  constexpr int kGates = gates_of(cell), kSaved = saved_parts(cell);
  const RecurrenceParams& p = s.p;
  constexpr bool kPlain = kBeside != Beside::extras, kInfers = kBeside == Beside::nothing;
  const bool saves = !kInfers && p.saved, saves_c = !kInfers && p.c, needs_o = !kPlain && p.cell_weight;
  const int64_t unit = block * kLanes;
  const int n = s.z.hh.units_of(block);
  constexpr bool kNeedsH = cell == Cell::gru;  // zoneout is put_h's
  Vec bias[biases(cell)];
  for (int i = 0; i < biases(cell); i++) bias[i] = load(s.m.bias + (block * biases(cell) + i) * kLanes);
  for (int64_t slot = 0; slot < step.active; slot++) {
    const int64_t row = s.row(step.t, slot);
    const bool reset = !kPlain && s.resets(row);
    if (saves && slot + kAhead < step.active) {
      const float* next = p.saved + s.row(step.t, slot + kAhead) * kSaved * p.hidden + unit;
      for (int i = 0; i < kSaved; i++) __builtin_prefetch(next + i * p.hidden, 1);
    }
    float* state = s.m.c + slot * s.z.hidden_row + unit;
    Vec x[kGates], w[kGates];
    for (int g = 0; g < kGates; g++) {
      x[g] = kPlain || p.x ? load(input.slot(slot) + g * kLanes)
                           : load_units(p.gates_x + (row * kGates + g) * p.hidden + unit, n);
      w[g] = load(hidden.slot(slot) + g * kLanes);
    }
    const Vec h = !kNeedsH || reset ? zero() : load(step.h + slot * s.z.state_row + unit);
    const Vec c = cell != Cell::lstm || reset ? zero() : load(state);
    const Units<cell> made = advance<cell>(x, w, bias, h, c, saves || needs_o);

    for (int i = 0; saves && i < kSaved; i++)
      store_units(p.saved + (row * kSaved + i) * p.hidden + unit, made.saved[i], n);
    if constexpr (cell == Cell::lstm) {
      Vec after = made.c;
      if (!kPlain)
        after = zoneout(c, after, p.keep_c ? p.keep_c + row * p.hidden + unit : nullptr, p.zoneout_c, n);
      store(state, after);
      if (saves_c) store_units(p.c + row * p.hidden + unit, after, n);
    }
    if constexpr (kPlain) {
      store(step.h_after + slot * s.z.state_row + unit, made.h);
      if (Product::kRounds) store(step.operand_after + slot * s.z.state_row + unit, made.h);
      store_as(p.dtype, p.y, row * p.state + unit, made.h, n);
    } else if (needs_o) {  // h' waits for the whole row of c'
      store(s.m.c_made + slot * s.z.hidden_row + unit, made.c);
      store(s.m.o_made + slot * s.z.hidden_row + unit, made.saved[kSaved - 1]);
    } else if (p.projects()) {
      store(s.m.h_made + slot * s.z.hidden_row + unit, made.h);
    } else {
      put_h(s, step, slot, unit, n, made.h);
    }
  }
}

// LayerNorm of W_hh h of one sample, in place. products: of all groups.
template <Cell cell, class Product>
void normalise_products(const ForwardState<Product>& s, const Step<typename Product::Element>& step,
                        int64_t slot, const Slab& products) {
  constexpr int kGates = gates_of(cell);
  const RecurrenceParams& p = s.p;
  const Panels& w = s.z.hh;
  auto at = [&](int64_t block) {
    return products.vector(block * kGates, w.group_vectors()) + slot * products.row;
  };
  const RowMoments moments = row_moments<kGates>(p.hidden, p.eps, at);
  const int64_t row = s.row(step.t, slot);
  if (p.rstd) p.rstd[row] = moments.rstd;
  for (int64_t block = 0; block < w.blocks(); block++)
    for (int g = 0; g < kGates; g++) {
      float* v = at(block) + g * kLanes;
      const Vec hat = moments.apply(load(v));
      if (p.hat) store_units(p.hat + (row * kGates + g) * p.hidden + block * kLanes, hat, w.units_of(block));
      store(v, hat * load(s.m.norm_weight + (block * kGates + g) * kLanes));
    }
}

// h' = o tanh(LayerNorm(c') weight + bias) of one sample.
template <class Product>
void normalise_cell(const ForwardState<Product>& s, const Step<typename Product::Element>& step,
                    int64_t slot) {
  const RecurrenceParams& p = s.p;
  const float *c = s.m.c_made + slot * s.z.hidden_row, *o = s.m.o_made + slot * s.z.hidden_row;
  const RowMoments moments =
      row_moments<1>(p.hidden, p.eps, [&](int64_t block) { return c + block * kLanes; });
  each_vector(p.hidden, [&](int64_t j, int n) {
    const Vec shift = p.cell_bias ? load_units(p.cell_bias + j, n) : zero();
    const Vec h =
        load(o + j) * tanh(fma(moments.apply(load(c + j)), load_units(p.cell_weight + j, n), shift));
    if (p.projects())
      store(s.m.h_made + slot * s.z.hidden_row + j, h);
    else
      put_h(s, step, slot, j, n, h);
  });
}

// h' = W_hr h', the columns of one group. slab: where its products go.
template <class Product>
void project_group(const ForwardState<Product>& s, const Step<typename Product::Element>& step, int64_t group,
                   const Slab& slab) {
  const Panels& w = s.z.hr;
  Product::multiply(w, s.m.hr.data, group, group + 1, {s.m.h_made, step.active, s.z.hidden_row}, slab);
  const int64_t first = group * w.group_blocks(), end = lesser(first + w.group_blocks(), w.blocks());
  for (int64_t block = first; block < end; block++)
    for (int64_t slot = 0; slot < step.active; slot++)
      put_h(s, step, slot, block * kLanes, w.units_of(block),
            load(slab.vector(block - first, w.group_vectors()) + slot * slab.row));
}

}  // namespace
}  // namespace dlops
