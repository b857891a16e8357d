// What the threads of a backward pass share: the order of the samples, the gradients of the states on their way through
// time, and the gradients of the gates of one chunk of steps.
//
// Steps are counted in the order of processing, from each sample's first. Those that step s reaches are the slots [0, active)
// of the order of samples. The elements of a step lie behind each other, steps likewise: element e = first[s] + slot. A chunk
// is a range of steps whose gradients of the gates stay in cache until its weight gradients are done.
#pragma once
#include "../cpu/matmul.h"
#include "../cpu/scratch.h"
#include "order.h"
#include "sequence.h"

namespace dlops {
namespace {

constexpr int64_t kChunkFloats = 1 << 20;  // gradients of gates of a chunk
constexpr int64_t kMinChunkRows = 512;     // a pass over the weight gradients pays for itself
constexpr int64_t kInputBlock = 128;       // rows of dx that are one task
constexpr int64_t kWeightBlock = 96;       // rows of a weight gradient that are one task
constexpr int64_t kStripDepth = 1024;      // a block of strips of this depth stays in L2

DLOPS_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out parts of one block of scratch memory, each 64-byte aligned; over a null base it counts them.
struct Arena {
  float* base;
  int64_t used = 0;
  float* floats(int64_t n) {
    float* part = base ? base + used : nullptr;
    used += (n + 15) / 16 * 16;
    return part;
  }
};

// The gradient of a weight [rows, columns], summed in whole vectors.
struct WeightGradient {
  float* out;  // or null
  int64_t rows, columns;
  float* sum;  // `out`, or scratch where its rows are no whole vectors
  int64_t row() const { return whole_vectors(columns); }
  void take(Arena& arena) { sum = !out || columns % kLanes == 0 ? out : arena.floats(rows * row()); }
};

struct BackwardState {
  BackwardState(const RecurrenceBackwardParams& params, const Order& samples)
      : p(params),
        order(samples),
        width(p.gates() * p.hidden),
        gate_row((width + 15) / 16 * 16 + 16),  // no power of two: rows would share a set of L1
        dw_ih{p.dw_ih, width, p.input, nullptr},
        dw_hh{p.dw_hh, width, p.state, nullptr},
        dw_hr{p.dw_hr, p.state, p.hidden, nullptr} {}

  bool projects() const { return p.projects(); }
  bool splits() const { return p.cell == Cell::gru; }  // the gradients of the two products differ
  int64_t state_row() const { return whole_vectors(p.state); }
  int64_t unit_row() const { return whole_vectors(p.hidden); }
  int64_t chunk_rows_wanted() const { return greater(kMinChunkRows, kChunkFloats / width); }
  // Row of a sample's step in the chunk that starts at step `begin`.
  int64_t row(int64_t slot, int64_t step, int64_t begin) const {
    return slot + order.first[step] - order.first[begin];
  }
  // The first step of the chunk that ends before step `end`: as many steps as fit, at least one.
  int64_t chunk_begin(int64_t end) const {
    int64_t begin = end - 1;
    while (begin > 0 && order.first[end] - order.first[begin - 1] <= chunk_rows_wanted()) begin--;
    return begin;
  }

  void layout(Arena& arena) {
    const int64_t b = p.batch, rows = rows_of_largest_chunk();
    dh = arena.floats(b * state_row());
    through = p.dropout ? arena.floats(b * state_row()) : nullptr;
    dc = arena.floats(b * unit_row());
    c0 = arena.floats(b * unit_row());
    zeros = arena.floats(greater(state_row(), unit_row()));
    dh_new = arena.floats((projects() ? rows : b) * state_row());
    dh_units = projects() ? arena.floats(b * unit_row()) : dh_new;
    dgates_x = arena.floats(rows * gate_row);
    dgates_m = splits() ? arena.floats(rows * gate_row) : dgates_x;
    dgates_h = p.norm_weight ? arena.floats(rows * gate_row) : dgates_m;
    units = p.dw_hr ? arena.floats(rows * unit_row()) : nullptr;
    cell_hat = p.cell_weight ? arena.floats(rows * unit_row()) : nullptr;
    cell_du = p.cell_weight ? arena.floats(rows * unit_row()) : nullptr;
    layout_weights(arena, rows);
    member_floats = greater(greater(strip_floats(kStripDepth, kWeightBlock), 2 * unit_row()),
                            kInputBlock * whole_vectors(p.input) + kPanelFloats);
    members = arena.floats(greater(p.threads, 1) * member_floats);
  }
  void layout_weights(Arena& arena, int64_t rows) {
    const int64_t elements = order.first[order.steps];
    w_hh = operand(arena, p.w_hh, width, p.state, elements <= kStrip);
    w_hr = operand(arena, projects() ? p.w_hr : nullptr, p.state, p.hidden, elements <= kStrip);
    w_ih = operand(arena, p.dx ? p.w_ih : nullptr, width, p.input, elements <= kInputBlock);
    packed_x = p.dw_ih ? arena.floats(rows * whole_vectors(p.input)) : nullptr;
    packed_h = p.dw_hh ? arena.floats(rows * state_row()) : nullptr;
    packed_units = p.dw_hr ? arena.floats(rows * unit_row()) : nullptr;
    dw_ih.take(arena);
    dw_hh.take(arena);
    dw_hr.take(arena);
  }

  const RecurrenceBackwardParams& p;
  const Order& order;
  int64_t width, gate_row;  // G H, and the rows of the gradients of the gates
  // By slot. dh, dc: of the states after the step at hand, but by what the step's own outputs add
  float *dh, *through, *dc, *c0, *zeros;  // [B, P]; dh W_hh before dropout [B, P]; [B, H]; [B, H]; one row
  // Of h': by row of the chunk with a projection, else by slot; and of the h' before the projection, by slot.
  float *dh_new, *dh_units;
  // By row of the chunk, [G H]: gradients of W_ih x, of the (normalised) W_hh h and of W_hh h. Equal ones are one.
  float *dgates_x, *dgates_m, *dgates_h;
  float *units, *cell_hat, *cell_du;  // [H]: h' before the projection; of the LayerNorm of c'
  RightOperand w_hh, w_hr, w_ih;
  float *packed_x, *packed_h, *packed_units;  // panels of the chunk's right operands
  WeightGradient dw_ih, dw_hh, dw_hr;
  float* members;
  int64_t member_floats;

 private:
  int64_t rows_of_largest_chunk() const {
    int64_t most = 0;
    for (int64_t end = order.steps; end > 0;) {
      const int64_t begin = chunk_begin(end);
      most = greater(most, order.first[end] - order.first[begin]);
      end = begin;
    }
    return most;
  }
  // A weight [depth, columns], packed; or as it lies, if few elements make that cheaper and its rows are whole vectors.
  RightOperand operand(Arena& arena, const void* w, int64_t depth, int64_t columns, bool few) const {
    const int64_t wide = whole_vectors(columns);
    if (!w) return {nullptr, 0, 0, 0};
    if (few && p.dtype == Dtype::f32 && columns == wide)
      return {static_cast<const float*>(w), depth, columns, columns};
    return {arena.floats(depth * wide), depth, wide, 0};
  }
};

}  // namespace
}  // namespace dlops
