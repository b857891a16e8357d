// What the threads of a forward pass share, and what happens before its first step and after its last.
#pragma once
#include "forward_buffers.h"

namespace dlops {
namespace {

// Of n things, those that one of the threads owns.
struct Share {
  int64_t begin, end;
  Share(int64_t n, int member, int members) : begin(n * member / members), end(n * (member + 1) / members) {}
};

// One of the threads. It owns groups of the gates' weights, so that they stay in its cache, and of the projection's.
struct Member {
  int index, count;
  Share groups, projection, slots;
};

template <class Product>
struct ForwardState {
  const RecurrenceParams& p;
  const Order& order;
  const ForwardSizes& z;
  const ForwardBuffers<Product>& m;

  using Element = typename Product::Element;

  int64_t row(int64_t t, int64_t slot) const { return p.row(t, order.sample(slot)); }
  bool resets(int64_t row) const { return p.reset && p.reset[row]; }
  bool zones_h() const { return p.keep_h || p.zoneout_h > 0; }

  // What W_hh multiplies of a sample's h at the step of `row`: n columns from `column` on.
  Vec operand_of(Vec h, int64_t sample, int64_t row, int64_t column, int n) const {
    if (resets(row)) return zero();
    return p.dropout ? h * load_units(p.dropout + sample * p.state + column, n) : h;
  }
};

// f(column, vector's length) for the vectors of a row.
template <class F>
DLOPS_INLINE void each_vector(int64_t width, F f) {
  for (int64_t j = 0; j < width; j += kLanes) f(j, static_cast<int>(lesser(width - j, kLanes)));
}

// ---- before the first step ----

// Biases and the weight of the LayerNorm of one block, in the order of the gates' vectors.
template <Cell cell, class Product>
void prepare_block(const ForwardState<Product>& s, int64_t block) {
  constexpr int kGates = gates_of(cell);
  const RecurrenceParams& p = s.p;
  const int n = s.z.hh.units_of(block);
  auto vector = [&](const void* from, int64_t gate) {
    return from ? load_as(p.dtype, from, gate * p.hidden + block * kLanes, n) : zero();
  };
  float* bias = s.m.bias + block * biases(cell) * kLanes;
  for (int g = 0; g < kGates; g++) {
    const bool apart = cell == Cell::gru && g == 2;  // r multiplies the second
    const Vec input = vector(p.b_ih, g), hidden = vector(p.b_hh, g);
    store(bias + g * kLanes, apart ? input : input + hidden);
    if (apart) store(bias + kGates * kLanes, hidden);
    if (p.norm_weight)
      store(s.m.norm_weight + (block * kGates + g) * kLanes,
            load_units(p.norm_weight + g * p.hidden + block * kLanes, n));
  }
}

template <Cell cell, class Product>
void prepare_weights(const ForwardState<Product>& s, const Member& own) {
  const RecurrenceParams& p = s.p;
  auto pack = [&](const Panels& w, const void* from, const PackedWeight& packed, const Share& groups) {
    if (packed.own) Product::pack(w, p.dtype, from, groups.begin, groups.end, packed.own);
  };
  pack(s.z.ih, p.w_ih, s.m.ih, own.groups);
  pack(s.z.hh, p.w_hh, s.m.hh, own.groups);
  pack(s.z.hr, p.w_hr, s.m.hr, own.projection);
  const Panels& w = s.z.hh;
  const int64_t end = lesser(own.groups.end * w.group_blocks(), w.blocks());
  for (int64_t block = own.groups.begin * w.group_blocks(); block < end; block++)
    prepare_block<cell>(s, block);
}

// Rows without an element are zeros.
template <class Product>
void clear_row(const ForwardState<Product>& s, int64_t row) {
  const RecurrenceParams& p = s.p;
  each_vector(p.state, [&](int64_t j, int n) { store_as(p.dtype, p.y, row * p.state + j, zero(), n); });
  if (p.c) each_vector(p.hidden, [&](int64_t j, int n) { store_units(p.c + row * p.hidden + j, zero(), n); });
}

// h0 goes to both buffers: a sample that joins later finds it in either.
template <class Product>
void prepare_slot(const ForwardState<Product>& s, int64_t slot) {
  const RecurrenceParams& p = s.p;
  const int64_t sample = s.order.sample(slot), length = p.length(sample);
  each_vector(p.state, [&](int64_t j, int n) {
    const Vec h = p.h0 ? load_as(p.dtype, p.h0, sample * p.state + j, n) : zero();
    const int64_t at = slot * s.z.state_row + j, first = p.reverse ? length - 1 : 0;
    for (int i = 0; i < 2; i++) store(s.m.h[i] + at, h);
    if (!s.z.apart || length == 0) return;
    const Vec operand = s.operand_of(h, sample, p.row(first, sample), j, n);
    for (int i = 0; i < 2; i++) store(s.m.operand[i] + at, operand);
  });
  each_vector(p.hidden, [&](int64_t j, int n) {
    store(s.m.c + slot * s.z.hidden_row + j,
          p.c0 ? load_as(p.dtype, p.c0, sample * p.hidden + j, n) : zero());
  });
  for (int64_t t = length; !p.offsets && t < p.steps; t++) clear_row(s, p.row(t, sample));
}

// ---- after the last ----

template <class Product>
void write_last_state(const ForwardState<Product>& s, int64_t slot) {
  const RecurrenceParams& p = s.p;
  const int64_t sample = s.order.sample(slot);
  // So many steps had been made when the sample's last one was. A sample without any has h0 in both buffers.
  const int64_t steps = p.reverse ? s.order.steps : p.length(sample);
  const float *h = s.m.h[steps & 1] + slot * s.z.state_row, *c = s.m.c + slot * s.z.hidden_row;
  if (p.hn)
    each_vector(p.state,
                [&](int64_t j, int n) { store_as(p.dtype, p.hn, sample * p.state + j, load(h + j), n); });
  if (p.cn)
    each_vector(p.hidden,
                [&](int64_t j, int n) { store_as(p.dtype, p.cn, sample * p.hidden + j, load(c + j), n); });
}

}  // namespace
}  // namespace dlops
