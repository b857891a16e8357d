// The derivative of the first rung: each sample from its last element to its first, then the gradients of the weights, which
// are sums over all elements.
#pragma once
#include "cells.h"

namespace dlops {
namespace {

// out[k] += s v[k].
template <class T>
DLOPS_INLINE void add_scaled(float s, const T* v, int64_t n, float* out) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) store(out + k, fma(set1(s), load(v + k), load(out + k)));
  for (; k < n; k++) out[k] += s * load1(v + k);
}

// Sums of many scaled rows, [n]: kTerms of them, then those join the total.
struct RowSum {
  float *total, *part;
  int64_t n, terms;

  RowSum(float* total, float* part, int64_t n) : total(total), part(part), n(n), terms(0) {
    for (int64_t k = 0; k < n; k++) total[k] = part[k] = 0;
  }
  template <class T>
  void add(float s, const T* row) {
    add_scaled(s, row, n, part);
    if (++terms % kTerms == 0) flush();
  }
  void flush() {
    for (int64_t k = 0; k < n; k++) {
      total[k] += part[k];
      part[k] = 0;
    }
  }
};

// What the two halves share: the gradients of W_ih x and of W_hh h + b_hh, [rows, G H], and what W_hh multiplied, [rows, H].
struct Elements { float *dgates_x, *dgates_h, *h; };

// The gradients of a unit's gates, at dx[gate] and dh[gate], and the state's but by W_hh. before: h before the step.
DLOPS_INLINE float derive(Cell cell, const float* saved, float before, float gradient, float* dx, float* dh) {
  if (cell == Cell::gru) {
    const float r = saved[0], z = saved[1], n = saved[2];
    dx[2] = gradient * (1 - z) * (1 - n * n);
    dx[1] = gradient * (before - n) * z * (1 - z);
    dx[0] = dx[2] * saved[3] * r * (1 - r);
    dh[0] = dx[0], dh[1] = dx[1], dh[2] = dx[2] * r;
    return gradient * z;
  }
  dx[0] = dh[0] = cell == Cell::rnn_tanh ? gradient * (1 - saved[0] * saved[0])
                  : saved[0] <= 0        ? 0
                                         : gradient;
  return 0;
}
// lstm: c before the step, gradients of h' and of c'. Returns that of c before.
DLOPS_INLINE float derive_lstm(const float* saved, float before, float dh, float dc, float* dx) {
  const float i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanhf(next_c(saved, before));
  dc += dh * o * (1 - tanh_c * tanh_c);
  dx[0] = dc * g * i * (1 - i);
  dx[1] = dc * before * f * (1 - f);
  dx[2] = dc * i * (1 - g * g);
  dx[3] = dh * tanh_c * o * (1 - o);
  return dc * f;
}

// The gates of one element. dh, dc [H]: the gradients of the state after it; they become those of the state before it, dh
// without what comes by W_hh.
template <class T>
void backward_gates(const RecurrenceBackwardParams& p, const Elements& e, const Place& at, int64_t b,
                    float* dh, float* dc) {
  const int64_t gates = p.gates(), parts = saved_parts(p.cell);
  for (int64_t u = 0; u < p.hidden; u++) {
    const int64_t i = at.row * p.hidden + u;
    float saved[4], dx[4], d[4];
    for (int64_t s = 0; s < parts; s++) saved[s] = p.saved[(at.row * parts + s) * p.hidden + u];
    const float share_h = zoneout_share(p.keep_h, p.zoneout_h, i);
    const float gradient_h = dh[u] + value<T>(p.dy, i), gradient_after = share_of(1 - share_h, gradient_h);
    dh[u] = share_of(share_h, gradient_h);
    if (p.cell == Cell::lstm) {
      const float share_c = zoneout_share(p.keep_c, p.zoneout_c, i);
      const float gradient_c = dc[u] + (p.dc ? p.dc[i] : 0);
      const float before = c_before<T>(p, at, b, u, p.c + at.before * p.hidden);
      dc[u] = share_of(share_c, gradient_c) +
              derive_lstm(saved, before, gradient_after, share_of(1 - share_c, gradient_c), dx);
      for (int gate = 0; gate < 4; gate++) d[gate] = dx[gate];
    } else {
      dh[u] += derive(p.cell, saved, h_before<T>(p, at, b, u), gradient_after, dx, d);
    }
    for (int64_t gate = 0; gate < gates; gate++) {
      e.dgates_x[(at.row * gates + gate) * p.hidden + u] = dx[gate];
      e.dgates_h[(at.row * gates + gate) * p.hidden + u] = d[gate];
    }
  }
}

// A row without an element.
template <class T>
void pad_gradients(const RecurrenceBackwardParams& p, const Elements& e, const Place& at) {
  const int64_t width = p.gates() * p.hidden;
  for (int64_t j = 0; j < width; j++) e.dgates_x[at.row * width + j] = e.dgates_h[at.row * width + j] = 0;
  T* dx = static_cast<T*>(p.dx);
  for (int64_t k = 0; dx && k < p.input; k++) store1(dx + at.row * p.input + k, 0);
}

// work: [2 H + 2 max(H, I)]
template <class T>
void backward_sample(const RecurrenceBackwardParams& p, const Elements& e, int64_t b, float* work) {
  float *dh = work, *dc = dh + p.hidden, *sum = dc + p.hidden, *part = sum + larger(p.hidden, p.input);
  const int64_t width = p.gates() * p.hidden;
  const T *w_hh = static_cast<const T*>(p.w_hh), *w_ih = static_cast<const T*>(p.w_ih);
  T* dx = static_cast<T*>(p.dx);
  for (int64_t u = 0; u < p.hidden; u++) {
    dh[u] = value<T>(p.dhn, b * p.hidden + u);
    dc[u] = value<T>(p.dcn, b * p.hidden + u);
  }
  for (int64_t step = p.steps - 1; step >= 0; step--) {
    const Place at = place(p, step, b);
    if (!at.there) {
      if (!p.offsets) pad_gradients<T>(p, e, at);
      continue;
    }
    backward_gates<T>(p, e, at, b, dh, dc);
    const float *dgates_x = e.dgates_x + at.row * width, *dgates_h = e.dgates_h + at.row * width;
    RowSum by_weights(sum, part, p.hidden);  // dgates_h W_hh
    for (int64_t j = 0; j < width; j++) by_weights.add(dgates_h[j], w_hh + j * p.hidden);
    by_weights.flush();
    for (int64_t u = 0; u < p.hidden; u++) {
      dh[u] += p.dropout ? sum[u] * p.dropout[b * p.hidden + u] : sum[u];
      if (resets(p, at)) dh[u] = dc[u] = 0;
    }
    if (dx) {
      RowSum of_x(sum, part, p.input);  // dgates_x W_ih
      for (int64_t j = 0; j < width; j++) of_x.add(dgates_x[j], w_ih + j * p.input);
      of_x.flush();
      for (int64_t k = 0; k < p.input; k++) store1(dx + at.row * p.input + k, sum[k]);
    }
    h_dropped<T>(p, at, b, e.h + at.row * p.hidden);
  }
  for (int64_t u = 0; u < p.hidden; u++) {
    put<T>(p.dh0, b * p.hidden + u, dh[u]);
    put<T>(p.dc0, b * p.hidden + u, dc[u]);
  }
}

// f(row) for every element, in the order of samples and steps.
template <class F>
DLOPS_INLINE void each_element(const RecurrenceProblem& p, F f) {
  for (int64_t b = 0; b < p.batch; b++)
    for (int64_t step = 0; step < p.length(b); step++) f(place(p, step, b).row);
}

// Row j of the gradient of one weight, [n], and its bias's: sums of dgates[row, j] times what the weight multiplied, which
// lies in `rows`. part: [n]
template <class T>
void weight_row(const RecurrenceProblem& p, const float* dgates, int64_t j, const T* rows, int64_t n,
                float* dw, float* part, float* db) {
  const int64_t width = p.gates() * p.hidden;
  if (dw) {
    RowSum sum(dw + j * n, part, n);
    each_element(p, [&](int64_t row) { sum.add(dgates[row * width + j], rows + row * n); });
    sum.flush();
  }
  if (db) {
    const float one = 1;
    RowSum sum(db + j, part, 1);
    each_element(p, [&](int64_t row) { sum.add(dgates[row * width + j], &one); });
    sum.flush();
  }
}

}  // namespace
}  // namespace dlops
