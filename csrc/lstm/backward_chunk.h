// What waits for the end of a chunk of steps, because it is faster for many rows at once: the gradients of x, of the
// weights and of the biases. R is the number of the chunk's rows.
#pragma once
#include "backward_step.h"

namespace dlops {
namespace {

struct Steps { int64_t begin, end; };

// f(SampleStep) for the rows [first, last) of a chunk.
template <class F>
DLOPS_INLINE void for_elements(const BackwardState& s, Steps chunk, int64_t first, int64_t last, F f) {
  for (int64_t step = chunk.begin; step < chunk.end; step++) {
    const int64_t row = s.row(0, step, chunk.begin);
    if (row >= last) return;
    for (int64_t slot = greater(0, first - row); slot < lesser(s.order.active[step], last - row); slot++)
      f(SampleStep(s, step, slot, chunk.begin));
  }
}

template <class T>
struct ChunkGradients {
  ChunkGradients(const BackwardState& state, Steps steps)
      : s(state),
        p(state.p),
        chunk(steps),
        rows(state.order.first[steps.end] - state.order.first[steps.begin]),
        is_first(steps.end == state.order.steps) {}

  // The right operands of the weight gradients: x, h before and h' before the projection.
  void pack(int64_t first, int64_t last) const {
    for_elements(s, chunk, first, last, [&](const SampleStep& at) {
      if (p.dw_ih)
        pack_row(static_cast<const T*>(p.x) + at.place.row * p.input, nullptr, p.input, at.element, rows,
                 s.dw_ih.row(), s.packed_x);
      if (p.dw_hh)
        pack_row(h_before<T>(s, at), p.dropout ? p.dropout + at.b * p.state : nullptr, p.state, at.element,
                 rows, s.dw_hh.row(), s.packed_h);
      if (p.dw_hr)
        pack_row(s.units + at.element * s.unit_row(), nullptr, p.hidden, at.element, rows, s.dw_hr.row(),
                 s.packed_units);
    });
  }

  // dx = dgates_x W_ih, and the gradients of the gates where they are wanted.
  void inputs(int64_t first, int64_t last, float* work) const {
    const int64_t wide = whole_vectors(p.input);
    if (p.dx)
      multiply_panels(last - first, s.dgates_x + first * s.gate_row, s.gate_row, s.w_ih, 0, s.w_ih.count(),
                      false, work, wide, work + kInputBlock * wide);
    for_elements(s, chunk, first, last, [&](const SampleStep& at) {
      if (p.dx) {
        T* dx = static_cast<T*>(p.dx) + at.place.row * p.input;
        const float* from = work + (at.element - first) * wide;
        for_units(0, p.input, [&](int64_t j, auto lanes) { put(dx + j, load(from + j), lanes); });
      }
      const size_t bytes = static_cast<size_t>(s.width) * sizeof(float);
      if (p.dgates_x)
        memcpy(p.dgates_x + at.place.row * s.width, s.dgates_x + at.element * s.gate_row, bytes);
      if (p.dgates_h)
        memcpy(p.dgates_h + at.place.row * s.width, s.dgates_h + at.element * s.gate_row, bytes);
    });
  }

  // A weight gradient's right operand, [R, ..] in panels.
  struct Product {
    const WeightGradient& w;
    const float* right;
  };
  // Rows [first, last) of each dw (+)= d^T right, d [R, ..].
  template <class... Products>
  void weights(const float* d, int64_t d_row, int64_t first, int64_t last, float* strips,
               Products... products) const {
    for (int64_t top = 0; top < rows; top += kStripDepth) {
      const int64_t height = lesser(kStripDepth, rows - top);
      pack_strips(height, last - first, d + top * d_row + first, d_row, strips);
      auto multiply = [&](const Product& product) {
        const WeightGradient& w = product.w;
        if (w.out)
          multiply_strips(last - first, strips, top, height, RightOperand{product.right, rows, w.row(), 0},
                          !is_first || top > 0, w.sum + first * w.row(), w.row());
      };
      (multiply(products), ...);
    }
  }

  // sum [columns begin to end) (+)= the sum over the chunk's rows of value(row, j, lanes).
  template <class Value>
  void column_sums(float* sum, int64_t begin, int64_t end, Value value) const {
    if (!sum) return;
    float part[kColumnBlock + kLanes];
    for (int64_t first = 0; first < rows; first += kDepthChunk) {
      for (int64_t j = begin; j < end; j += kLanes) store(part + j - begin, zero());
      for_elements(s, chunk, first, lesser(first + kDepthChunk, rows), [&](const SampleStep& at) {
        for_units(begin, end, [&](int64_t j, auto lanes) {
          store(part + j - begin, load(part + j - begin) + value(at, j, lanes));
        });
      });
      const bool add = !is_first || first > 0;
      for (int64_t j = begin; j < end; j++) sum[j] = add ? sum[j] + part[j - begin] : part[j - begin];
    }
  }
  void gate_sums(int64_t begin, int64_t end) const {
    column_sums(p.db_ih, begin, end, [&](const SampleStep& at, int64_t j, auto lanes) {
      return get(s.dgates_x + at.element * s.gate_row + j, lanes);
    });
    if (p.db_ih && p.db_hh && s.dgates_x == s.dgates_m)  // one sum
      memcpy(p.db_hh + begin, p.db_ih + begin, static_cast<size_t>(end - begin) * sizeof(float));
    else
      column_sums(p.db_hh, begin, end, [&](const SampleStep& at, int64_t j, auto lanes) {
        return get(s.dgates_m + at.element * s.gate_row + j, lanes);
      });
    column_sums(p.dnorm_weight, begin, end, [&](const SampleStep& at, int64_t j, auto lanes) {
      return get(s.dgates_m + at.element * s.gate_row + j, lanes) *
             get(p.hat + at.place.row * s.width + j, lanes);
    });
  }
  void cell_sums(int64_t begin, int64_t end) const {
    column_sums(p.dcell_bias, begin, end, [&](const SampleStep& at, int64_t j, auto) {
      return load(s.cell_du + at.element * s.unit_row() + j);
    });
    column_sums(p.dcell_weight, begin, end, [&](const SampleStep& at, int64_t j, auto) {
      return load(s.cell_du + at.element * s.unit_row() + j) *
             load(s.cell_hat + at.element * s.unit_row() + j);
    });
  }

  // All of it but `pack`: blocks of rows and columns, dealt out to the members in turn.
  void run(int64_t member, int64_t members, float* work) const {
    int64_t task = 0;
    // f(first, last) for the blocks of n rows or columns whose turn it is.
    auto blocks = [&](int64_t n, int64_t block, auto f) {
      for (int64_t first = 0; first < n; first += block)
        if (task++ % members == member) f(first, lesser(first + block, n));
    };
    if (p.dx || p.dgates_x || p.dgates_h)
      blocks(rows, kInputBlock, [&](int64_t first, int64_t last) { inputs(first, last, work); });
    const Product input{s.dw_ih, s.packed_x}, state{s.dw_hh, s.packed_h}, projection{s.dw_hr, s.packed_units};
    auto weights_of = [&](const float* d, int64_t d_row, int64_t n, auto... products) {
      if ((products.w.out || ...))
        blocks(n, kWeightBlock,
               [&](int64_t first, int64_t last) { weights(d, d_row, first, last, work, products...); });
    };
    if (s.dgates_x == s.dgates_h) {
      weights_of(s.dgates_x, s.gate_row, s.width, input, state);  // packed once
    } else {
      weights_of(s.dgates_x, s.gate_row, s.width, input);
      weights_of(s.dgates_h, s.gate_row, s.width, state);
    }
    weights_of(s.dh_new, s.state_row(), p.state, projection);
    blocks(s.width, kColumnBlock, [&](int64_t first, int64_t last) { gate_sums(first, last); });
    blocks(p.hidden, kColumnBlock, [&](int64_t first, int64_t last) { cell_sums(first, last); });
  }

  static constexpr int64_t kColumnBlock = 128;
  const BackwardState& s;
  const RecurrenceBackwardParams& p;
  Steps chunk;
  int64_t rows;
  bool is_first;  // chunk to be summed
};

}  // namespace
}  // namespace dlops
