// The forward pass of a sequence. A step multiplies the h of all active samples by W_hh, group by group of units (pack.h),
// and finishes the gates of a group while its products are in the first-level cache. The input's share, W_ih x, is made for
// some steps at once, so that one reading of W_ih serves enough rows. The state lies in float32 by slot (order.h). Threads
// meet after every step, and where whole rows are needed: before and after a LayerNorm, before a projection.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "forward_gates.h"

namespace dlops {
namespace {

// Steps [begin, end) whose input's share is made at once.
struct Chunk {
  int64_t begin, end;
  bool single() const { return end - begin == 1; }
};

template <Cell cell, class Product>
class Forward {
 public:
  using Element = typename Product::Element;

  Forward(const ForwardState<Product>& state, int member, int members)
      : s(state),
        p(state.p),
        order(state.order),
        z(state.z),
        own{member, members, Share(z.hh.groups(), member, members), Share(z.hr.groups(), member, members),
            Share(p.batch, member, members)},
        beside(beside_of(state)) {}

  // What one of the threads does.
  void run() {
    prepare_weights<cell>(s, own);
    for (int64_t slot = own.slots.begin; slot < own.slots.end; slot++) prepare_slot(s, slot);
    meet();
    for (int64_t done = 0; done < order.steps;) {
      const Chunk chunk = next_chunk(done);
      if (p.x) prepare_input(chunk);
      for (int64_t k = 0; k < chunk.end - chunk.begin; k++, done++) one_step(chunk, step_at(done));
    }
    for (int64_t slot = own.slots.begin; slot < own.slots.end; slot++) write_last_state(s, slot);
  }

 private:
  void meet() const {
    if (own.count > 1) team_barrier();
  }

  int64_t time_of(int64_t k) const { return p.reverse ? order.steps - 1 - k : k; }
  int64_t elements(int64_t begin, int64_t end) const { return order.first[end] - order.first[begin]; }

  // The k-th in the order of processing.
  Step<Element> step_at(int64_t k) const {
    const int64_t t = time_of(k), before = k & 1, after = before ^ 1;
    return {t,
            k + 1 < order.steps ? time_of(k + 1) : -1,
            order.active[t],
            s.m.h[before],
            s.m.operand[before],
            s.m.h[after],
            s.m.operand[after]};
  }

  // The steps after the first `done`, as many as have kChunkRows elements, but one at least.
  Chunk next_chunk(int64_t done) const {
    const int64_t t = time_of(done);
    Chunk c{t, t + 1};
    if (p.reverse)
      while (c.begin > 0 && elements(c.begin - 1, c.end) <= kChunkRows) c.begin--;
    else
      while (c.end < order.steps && elements(c.begin, c.end + 1) <= kChunkRows) c.end++;
    return c;
  }

  // ---- the input's share ----

  // Rows of x, ascending in time whatever the direction.
  Rows<Element> input_rows(const Chunk& chunk) const {
    const int64_t count = elements(chunk.begin, chunk.end);
    if (z.gathers) return {s.m.x, count, z.input_row};
    const int64_t first = p.row(0, 0) + order.first[chunk.begin];
    return {static_cast<const Element*>(p.x) + first * p.input, count, p.input};
  }

  void prepare_input(const Chunk& chunk) {
    if (z.gathers) {
      gather(chunk);
      meet();
    }
    if (chunk.single()) return;  // the step multiplies, group by group
    const Rows<Element> rows = input_rows(chunk);
    Product::multiply(z.ih, s.m.ih.data, own.groups.begin, own.groups.end, rows,
                      Slab(s.m.input, z.hh, rows.count).from(own.groups.begin, 0));
  }

  void gather(const Chunk& chunk) {
    int64_t to = 0;
    for (int64_t t = chunk.begin; t < chunk.end; t++)
      for (int64_t slot = 0; slot < order.active[t]; slot++, to++) {
        if (to % own.count != own.index) continue;
        const int64_t from = s.row(t, slot) * p.input;
        each_vector(p.input, [&](int64_t j, int n) {
          store(s.m.x + to * z.input_row + j, load_as(p.dtype, p.x, from + j, n));
        });
      }
  }

  // W_ih x of the step from group `begin` on. Where the chunk is one step, it is made here.
  Slab input_of(const Chunk& chunk, const Step<Element>& step, int64_t begin, int64_t end) {
    if (!chunk.single())
      return Slab(s.m.input, z.hh, elements(chunk.begin, chunk.end))
          .from(begin, elements(chunk.begin, step.t));
    const Slab slab(s.m.input + own.index * z.slab_floats, z.hh, step.active);
    Product::multiply(z.ih, s.m.ih.data, begin, end, input_rows(chunk), slab);
    return slab;
  }

  // ---- one step ----

  void one_step(const Chunk& chunk, const Step<Element>& step) {
    const Slab all(s.m.products, z.hh, step.active);  // of the LayerNorm
    if (p.norm_weight) {
      multiply_hidden(step, own.groups.begin, own.groups.end, all.from(own.groups.begin, 0));
      meet();
      for (int64_t slot = own.index; slot < step.active; slot += own.count)
        normalise_products<cell>(s, step, slot, all);
      meet();
    }
    const int64_t run = z.groups_at_once(step.active);
    for (int64_t begin = own.groups.begin; begin < own.groups.end; begin += run) {
      const int64_t end = lesser(begin + run, own.groups.end);
      const Slab hidden = p.norm_weight ? all.from(begin, 0) : own_slab(z.hh, step);
      if (!p.norm_weight) multiply_hidden(step, begin, end, hidden);
      finish_groups(step, begin, end, p.x ? input_of(chunk, step, begin, end) : hidden, hidden);
    }
    if (p.cell_weight) {
      meet();
      for (int64_t slot = own.index; slot < step.active; slot += own.count) normalise_cell(s, step, slot);
    }
    if (p.projects()) {
      meet();
      for (int64_t group = own.projection.begin; group < own.projection.end; group++)
        project_group(s, step, group, own_slab(z.hr, step));
    }
    meet();
  }

  Slab own_slab(const Panels& w, const Step<Element>& step) const {
    return Slab(s.m.products + own.index * z.slab_floats, w, step.active);
  }

  void multiply_hidden(const Step<Element>& step, int64_t begin, int64_t end, const Slab& out) {
    Product::multiply(z.hh, s.m.hh.data, begin, end, {step.operand, step.active, z.state_row}, out);
  }

  // input, hidden: products of groups [begin, end).
  void finish_groups(const Step<Element>& step, int64_t begin, int64_t end, const Slab& input,
                     const Slab& hidden) {
    const int64_t first = begin * z.hh.group_blocks(),
                  last = lesser(end * z.hh.group_blocks(), z.hh.blocks());
    for (int64_t block = first; block < last; block++) {
      const BlockProducts x(input, z.hh, block - first), w(hidden, z.hh, block - first);
      if (beside == Beside::nothing) finish_block<cell, Beside::nothing>(s, step, block, x, w);
      if (beside == Beside::saving) finish_block<cell, Beside::saving>(s, step, block, x, w);
      if (beside == Beside::extras) finish_block<cell, Beside::extras>(s, step, block, x, w);
    }
  }

  const ForwardState<Product>& s;
  const RecurrenceParams& p;
  const Order& order;
  const ForwardSizes& z;
  const Member own;
  const Beside beside;
};

template <Cell cell, class Product>
void run_forward(const RecurrenceParams& p) {
  const cpu::Scratch entries(sizeof(int64_t) * static_cast<size_t>(order_entries(p)));
  const Order order = order_samples(p, reinterpret_cast<int64_t*>(entries.floats()));
  const int64_t elements = order.first[order.steps];
  const bool gathers = p.x && (!Product::takes(p) || !is_dense(p, order));
  const ForwardSizes sizes(p, gathers, Product::kRounds);
  const int64_t floats = ForwardBuffers<Product>(p, sizes, elements, nullptr).floats;
  const cpu::Scratch memory(sizeof(float) * static_cast<size_t>(floats));
  const ForwardBuffers<Product> buffers(p, sizes, elements, memory.floats());
  const ForwardState<Product> state{p, order, sizes, buffers};
  team(sizes.threads, [&](int member, int members) { Forward<cell, Product>(state, member, members).run(); });
}

template <class Product>
void run_forward_of(const RecurrenceParams& p) {
  switch (p.cell) {
    case Cell::lstm: return run_forward<Cell::lstm, Product>(p);
    case Cell::gru: return run_forward<Cell::gru, Product>(p);
    case Cell::rnn_tanh: return run_forward<Cell::rnn_tanh, Product>(p);
    case Cell::rnn_relu: return run_forward<Cell::rnn_relu, Product>(p);
  }
}

}  // namespace
}  // namespace dlops
