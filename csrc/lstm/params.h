// What the recurrent kernels take: a sequence of steps (the "recurrence"), or the element-wise half of one step (the
// "gates"). Hidden size H, width of h P (H, or that of a projection), G gates. One layer, one direction.
//
//   lstm  a = W_ih x + b_ih + W_hh h + b_hh       i, f, o = sigmoid(a), g = tanh(a);  c' = f c + i g;  h' = o tanh(c')
//   gru   r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh);  n = tanh(W_in x + b_in + r (W_hn h + b_hn));  h' = (1 - z) n + z h
//   rnn   h' = tanh or relu (W_ih x + b_ih + W_hh h + b_hh)
//
// The gates lie in torch's order, [i f g o] and [r z n]. Everything beyond these lines is in RecurrenceExtras.
#pragma once
#include <cstdint>

#include "../dtype.h"

namespace dlops {

enum class Cell : int32_t { lstm, gru, rnn_tanh, rnn_relu };
constexpr int kCells = 4;
constexpr const char* kCellNames[kCells] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
constexpr int gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
// Parts [H] that a step saves for its derivative. lstm: i, f, g, o. gru: r, z, n, W_hn h + b_hn. rnn: h'.
constexpr int saved_parts(Cell cell) { return cell == Cell::lstm || cell == Cell::gru ? 4 : 1; }

// The rungs.
enum class Rung : int32_t {
  cells,  // both: one element of the result at a time; on CUDA a launch per step
  fused_cell,  // both: the step's product in register tiles, whose gates are finished at once; on CUDA a launch per step
  persistent,  // CUDA: one launch, W_hh stays on the multiprocessors
  count
};
constexpr int kRungs = static_cast<int>(Rung::count);
constexpr const char* kRungNames[kRungs] = {"cells", "fused_cell", "persistent"};

// All extras may be null or 0. In the order in which a step applies them; h and c are the state before it:
struct RecurrenceExtras {
  const uint8_t* reset;  // [rows]: 1: h = c = 0 before this step
  const float*
      dropout;  // [B, P]: W_hh multiplies h * dropout (recurrent dropout, one mask per sequence; scaled)
  const float*
      norm_weight;  // [G H]: LayerNorm(W_hh h) * norm_weight (over all G H, no bias) in the place of W_hh h
  const float *cell_weight, *cell_bias;  // [H], lstm: h' = o tanh(LayerNorm(c') * cell_weight + cell_bias)
  float eps;                             // of both LayerNorms
  // Zoneout: h' = h where keep_h, and c' = c where keep_c (h' comes of the c' before that); without masks, the expectation:
  // h' = zoneout_h h + (1 - zoneout_h) h', likewise c. h' is the projected one.
  const uint8_t *keep_h, *keep_c;  // [rows, P], [rows, H]
  float zoneout_h, zoneout_c;      // in [0, 1); count only where their mask is null
};

struct RecurrenceProblem : RecurrenceExtras {
  Cell cell;
  int64_t steps, batch, rows;    // T, B, and the rows of x and y: T B, or fewer in a packed sequence
  int64_t input, hidden, state;  // I, H, P. I is 0 where gates_x takes the place of x
  // Element t of sample b lies in row offsets[t] + b (packed), or t * step_stride + b * batch_stride (offsets is null).
  const int64_t* offsets;  // [T]
  int64_t step_stride, batch_stride;
  const int64_t*
      lengths;   // [B], 0 to T, or null: all are T. In a packed sequence they do not increase with b
  bool reverse;  // from each sample's last element to its first
  Dtype dtype;   // of x, y, h, c and the weights; sums and what is saved are float32
  int threads;   // CPU

  constexpr int64_t gates() const { return gates_of(cell); }
  constexpr int64_t row(int64_t t, int64_t b) const {
    return offsets ? offsets[t] + b : t * step_stride + b * batch_stride;
  }
  constexpr int64_t length(int64_t b) const { return lengths ? lengths[b] : steps; }
  constexpr bool projects() const { return state != hidden; }
};

// Rows without an element (t >= length of b) are zeros in y, c, dx, dgates_x and dgates_h, and unwritten in what else is saved. A
// sample of length 0 keeps its state: hn = h0.
struct RecurrenceParams : RecurrenceProblem {
  const void* x;                   // [rows, I], or null
  const float* gates_x;            // [rows, G H]: what stands for W_ih x, where x is null (always on CUDA)
  const void *w_ih, *w_hh, *w_hr;  // [G H, I], [G H, P], [P, H] (projection, or null). Null where packed
  const float *packed_ih, *packed_hh,
      *packed_hr;           // CPU: as `pack` makes them of [G H, I], [G H, P] and (gates = 1) [P, H]
  const void *b_ih, *b_hh;  // [G H] or null
  const void *h0, *c0;      // [B, P], [B, H], or null: zeros
  void *y, *hn, *cn;        // [rows, P], [B, P], [B, H] (lstm)
  // For the backward pass, or null: [rows, saved_parts, H]; c after every step [rows, H] (lstm; also where only the states are
  // wanted); with norm_weight the normalised W_hh h [rows, G H] before its weight, and 1 / its deviation [rows].
  float *saved, *c, *hat, *rstd;
  float* workspace;  // CUDA
  Rung rung;
};

// dgates_x: the gradient of W_ih x (its column sum is that of b_ih); dgates_h: that of W_hh h + b_hh where there is no
// LayerNorm (db_hh is its column sum). For lstm and rnn without norm_weight the two are equal, and dgates_h may be null.
// With norm_weight: dgates_h is the gradient of W_hh h itself, and db_hh = db_ih (lstm), [.., .., r dn] (gru).
struct RecurrenceBackwardParams : RecurrenceProblem {
  const void* x;                   // or null
  const void *w_ih, *w_hh, *w_hr;  // as they lie
  const void *h0, *c0, *y;
  const float *saved, *c, *hat, *rstd;
  const void *dy, *dhn, *dcn;  // [rows, P], [B, P], [B, H], or null: zeros
  const float* dc;             // [rows, H] or null: the gradient of c after every step
  // Wanted, or null:
  void *dx, *dh0, *dc0;                          // [rows, I], [B, P], [B, H]
  float *dgates_x, *dgates_h;                    // [rows, G H]
  float *dw_ih, *dw_hh, *dw_hr, *db_ih, *db_hh;  // CPU only, as are the next three
  float *dnorm_weight, *dcell_weight, *dcell_bias;
  void*
      h_before;  // CUDA only: [rows, P], what W_hh multiplied (after reset and dropout), for dw_hh; zeros at absent rows
  float* workspace;  // CUDA
  Rung rung;
};

// ---- the element-wise half of one step: cells whose products torch computes, and sequences that no kernel above takes ----

struct GatesParams {
  Cell cell;
  int64_t batch, hidden;
  Dtype dtype;                    // of all void pointers
  const void *gates_x, *gates_h;  // [B, G H]: W_ih x and W_hh h
  const void *b_ih, *b_hh;        // [G H] or null
  const void *h, *c;              // [B, H] before the step; h: gru and zoneout, else null. c: lstm
  const float *norm_weight, *cell_weight, *cell_bias;  // as in RecurrenceExtras (CUDA)
  float eps;
  const uint8_t *keep_h, *keep_c;  // [B, H]
  float zoneout_h, zoneout_c;
  void *h_out, *c_out;  // [B, H]
  float* saved;         // [B, saved_parts, H] or null
  float *hat, *rstd;    // [B, G H], [B] or null
  int threads;
};

struct GatesBackwardParams {
  Cell cell;
  int64_t batch, hidden;
  Dtype dtype;
  const void *h, *c;  // before the step
  const float *saved, *hat, *rstd;
  const float *norm_weight, *cell_weight, *cell_bias;
  float eps;
  const uint8_t *keep_h, *keep_c;
  float zoneout_h, zoneout_c;
  const void *dh_out, *dc_out;  // [B, H] or null: zeros
  void *dgates_x, *dgates_h;    // [B, G H]: of W_ih x, and of W_hh h; db_ih is the first's column sum
  void*
      db_hh_rows;  // [B, G H] or null: whose column sum is db_hh, where norm_weight makes it another than dgates_h
  void *dh, *dc;  // [B, H]: of h but by W_hh (gru's z h, zoneout); null where h is null. Of c
  // [parts, G H], [parts, H], [parts, H] or null: sums of some rows each, parts = gates_parts(batch). CUDA
  float *dnorm_weight, *dcell_weight, *dcell_bias;
  int threads;
};

constexpr int64_t gates_parts(int64_t batch) { return batch < 256 ? batch : 256; }

}  // namespace dlops
