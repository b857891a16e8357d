// The first rung: the equations of params.h as they stand there, one element of the result at a time, and sums along whole
// vectors. The weights as they lie, [G H, I] and [G H, H]; a sample at a time, from its first element to its last. h runs as
// it is rounded into y, where the next step reads it; c runs in float32.
#pragma once
#include <math.h>

#include "../cpu/simd.h"
#include "sequence.h"

namespace dlops {
namespace {

DLOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t kTerms = 256;  // that one sum takes before it joins the total: long sums lose fewer digits

DLOPS_INLINE int64_t end_of(int64_t first, int64_t count) {
  return first + kTerms < count ? first + kTerms : count;
}

// The sum of a[k] b[k]. Its order depends on n alone.
template <class T>
DLOPS_INLINE float dot(const T* a, const float* b, int64_t n) {
  float total = 0;
  for (int64_t first = 0; first < n; first += kTerms) {
    const int64_t end = end_of(first, n);
    int64_t k = first;
    Vec sum = zero();
    for (; k + kLanes <= end; k += kLanes) sum = fma(load(a + k), load(b + k), sum);
    float part = reduce_add(sum);
    for (; k < end; k++) part += load1(a + k) * b[k];
    total += part;
  }
  return total;
}

// A value that may be absent: then it is 0.
template <class T>
DLOPS_INLINE float value(const void* values, int64_t i) {
  return values ? load1(static_cast<const T*>(values) + i) : 0.f;
}
template <class T>
DLOPS_INLINE void put(void* values, int64_t i, float x) {
  if (values) store1(static_cast<T*>(values) + i, x);
}

DLOPS_INLINE bool resets(const RecurrenceProblem& p, const Place& at) { return p.reset && p.reset[at.row]; }

// Unit u of sample b's state before a step: after the reset, before the dropout. P: RecurrenceParams or its backward.
template <class T, class P>
DLOPS_INLINE float h_before(const P& p, const Place& at, int64_t b, int64_t u) {
  if (resets(p, at)) return 0;
  return at.first ? value<T>(p.h0, b * p.hidden + u) : value<T>(p.y, at.before * p.hidden + u);
}
// `running`: c after the step before.
template <class T, class P>
DLOPS_INLINE float c_before(const P& p, const Place& at, int64_t b, int64_t u, const float* running) {
  if (resets(p, at)) return 0;
  return at.first ? value<T>(p.c0, b * p.hidden + u) : running[u];
}

// What W_hh multiplies, [H].
template <class T, class P>
DLOPS_INLINE void h_dropped(const P& p, const Place& at, int64_t b, float* h) {
  for (int64_t u = 0; u < p.hidden; u++) {
    h[u] = h_before<T>(p, at, b, u);
    if (p.dropout) h[u] *= p.dropout[b * p.hidden + u];
  }
}

// The share of the old state in the new one: a mask's 0 or 1, or the same for all.
DLOPS_INLINE float zoneout_share(const uint8_t* keep, float expected, int64_t i) {
  return keep ? static_cast<float>(keep[i] != 0) : expected;
}
// Where one state has all of it the other may be NaN.
DLOPS_INLINE float mix(float share, float before, float after) {
  return share == 0 ? after : share == 1 ? before : share * before + (1 - share) * after;
}
DLOPS_INLINE float share_of(float share, float gradient) { return share == 0 ? 0 : share * gradient; }

DLOPS_INLINE float sigmoid1(float x) { return 1 / (1 + expf(-x)); }

// The activated gates of a unit and what else a step saves. x, h: what each gate gets of the input and of the state.
DLOPS_INLINE void activate(Cell cell, const float* x, const float* h, float* saved) {
  if (cell == Cell::lstm) {  // i f g o
    saved[0] = sigmoid1(x[0] + h[0]);
    saved[1] = sigmoid1(x[1] + h[1]);
    saved[2] = tanhf(x[2] + h[2]);
    saved[3] = sigmoid1(x[3] + h[3]);
  } else if (cell == Cell::gru) {  // r z n, W_hn h + b_hn
    saved[0] = sigmoid1(x[0] + h[0]);
    saved[1] = sigmoid1(x[1] + h[1]);
    saved[2] = tanhf(x[2] + saved[0] * h[2]);
    saved[3] = h[2];
  } else {
    const float a = x[0] + h[0];
    saved[0] = cell == Cell::rnn_tanh ? tanhf(a) : a <= 0 ? 0 : a;  // NaN stays NaN
  }
}
DLOPS_INLINE float next_c(const float* saved, float c) { return saved[1] * c + saved[0] * saved[2]; }
// before: h before the step.
DLOPS_INLINE float next_h(Cell cell, const float* saved, float before, float c) {
  if (cell == Cell::lstm) return saved[3] * tanhf(c);
  if (cell == Cell::gru) return (1 - saved[1]) * saved[2] + saved[1] * before;
  return saved[0];
}

// One step of one sample. x: its input, [I], if gates_x has not what it comes to; h: what W_hh multiplies, [H]; c: the running
// state, [H].
template <class T>
void forward_step(const RecurrenceParams& p, const Place& at, int64_t b, const float* x, const float* h,
                  float* c) {
  const int64_t gates = p.gates(), parts = saved_parts(p.cell);
  for (int64_t u = 0; u < p.hidden; u++) {
    float of_x[4], of_h[4], saved[4];
    for (int64_t gate = 0; gate < gates; gate++) {
      const int64_t j = gate * p.hidden + u;
      of_h[gate] = dot(static_cast<const T*>(p.w_hh) + j * p.hidden, h, p.hidden) + value<T>(p.b_hh, j);
      of_x[gate] = (p.x ? dot(static_cast<const T*>(p.w_ih) + j * p.input, x, p.input)
                        : p.gates_x[at.row * gates * p.hidden + j]) +
                   value<T>(p.b_ih, j);
    }
    activate(p.cell, of_x, of_h, saved);
    for (int64_t s = 0; p.saved && s < parts; s++) p.saved[(at.row * parts + s) * p.hidden + u] = saved[s];

    const int64_t i = at.row * p.hidden + u;
    float c_after = 0;
    if (p.cell == Cell::lstm) {
      const float before = c_before<T>(p, at, b, u, c);
      c_after = next_c(saved, before);
      c[u] = mix(zoneout_share(p.keep_c, p.zoneout_c, i), before, c_after);
      if (p.c) p.c[i] = c[u];
    }
    const float before = h_before<T>(p, at, b, u);
    const float after = next_h(p.cell, saved, before, c_after);
    put<T>(p.y, i, mix(zoneout_share(p.keep_h, p.zoneout_h, i), before, after));
  }
}

// Row `at` of the padding.
template <class T>
void pad(const RecurrenceParams& p, const Place& at) {
  for (int64_t u = 0; u < p.hidden; u++) {
    put<T>(p.y, at.row * p.hidden + u, 0);
    if (p.c) p.c[at.row * p.hidden + u] = 0;
  }
}

// work: [I + 2 H]
template <class T>
void forward_sample(const RecurrenceParams& p, int64_t b, float* work) {
  float *x = work, *h = x + p.input, *c = h + p.hidden;
  for (int64_t step = 0; step < p.steps; step++) {
    const Place at = place(p, step, b);
    if (!at.there) {
      if (!p.offsets) pad<T>(p, at);
      continue;
    }
    for (int64_t k = 0; p.x && k < p.input; k++) x[k] = value<T>(p.x, at.row * p.input + k);
    h_dropped<T>(p, at, b, h);
    forward_step<T>(p, at, b, x, h, c);
  }
  const int64_t length = p.length(b), last = length > 0 ? place(p, length - 1, b).row : 0;
  for (int64_t u = 0; u < p.hidden; u++) {  // a sample without elements keeps its state
    const int64_t i = b * p.hidden + u;
    put<T>(p.hn, i, length > 0 ? value<T>(p.y, last * p.hidden + u) : value<T>(p.h0, i));
    if (p.cell == Cell::lstm) put<T>(p.cn, i, length > 0 ? c[u] : value<T>(p.c0, i));
  }
}

}  // namespace
}  // namespace dlops
