// The maths of a cell on one unit of one sample, forward and derivative, in float32. Memory is the callers' business: they
// hand over what enters each gate and get what a step saves (params.h), and the reverse.
#pragma once
#include "../cuda/launch.h"
#include "params.h"

namespace dlops::lstm {

template <Cell kCell>
constexpr int kGates = gates_of(kCell);
template <Cell kCell>
constexpr int kSaved = saved_parts(kCell);

DLOPS_DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// ---- forward ----

// x, h: what each gate gets of the input, W_ih x + b_ih, and of the state, W_hh h + b_hh.
template <Cell kCell>
DLOPS_DEVICE void activate(const float (&x)[kGates<kCell>], const float (&h)[kGates<kCell>],
                           float (&saved)[kSaved<kCell>]) {
  if constexpr (kCell == Cell::lstm) {
    saved[0] = sigmoid(x[0] + h[0]);
    saved[1] = sigmoid(x[1] + h[1]);
    saved[2] = tanhf(x[2] + h[2]);
    saved[3] = sigmoid(x[3] + h[3]);
  } else if constexpr (kCell == Cell::gru) {
    saved[0] = sigmoid(x[0] + h[0]);
    saved[1] = sigmoid(x[1] + h[1]);
    saved[2] = tanhf(fmaf(saved[0], h[2], x[2]));
    saved[3] = h[2];
  } else {
    const float a = x[0] + h[0];
    saved[0] = kCell == Cell::rnn_tanh ? tanhf(a) : a <= 0.f ? 0.f : a;  // NaN stays NaN
  }
}

// lstm: c' = f c + i g.
DLOPS_DEVICE float next_c(const float (&saved)[4], float c) { return fmaf(saved[0], saved[2], saved[1] * c); }

// h' before zoneout. lstm: o tanh_c, where tanh_c is the tanh of c', normalised or not. gru: h is the state before.
template <Cell kCell>
DLOPS_DEVICE float next_h(const float (&saved)[kSaved<kCell>], float h, float tanh_c) {
  if constexpr (kCell == Cell::lstm)
    return saved[3] * tanh_c;
  else if constexpr (kCell == Cell::gru)
    return fmaf(saved[1], h - saved[2], saved[2]);
  else
    return saved[0];
}

// ---- derivative ----

// Gradients of W_ih x and of W_hh h + b_hh, and `before`: that of the state before the step, but by W_hh (lstm: of c by
// f c; gru: of h by z h).
template <Cell kCell>
struct Gradients {
  float x[kGates<kCell>], h[kGates<kCell>], before;
};

// lstm: the gradient of what the output's tanh takes, dh that of h' before zoneout.
DLOPS_DEVICE float through_output(const float (&saved)[4], float dh, float tanh_c) {
  return dh * saved[3] * (1.f - tanh_c * tanh_c);
}

// before: the state before the step; lstm: c, gru: h. dh: the gradient of h' before zoneout. lstm: dc that of c', with
// through_output's part.
template <Cell kCell>
DLOPS_DEVICE Gradients<kCell> derive(const float (&saved)[kSaved<kCell>], float before, float dh, float dc,
                                     float tanh_c) {
  Gradients<kCell> d;
  if constexpr (kCell == Cell::lstm) {
    const float i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    d.x[0] = dc * g * (i * (1.f - i));
    d.x[1] = dc * before * (f * (1.f - f));
    d.x[2] = dc * i * (1.f - g * g);
    d.x[3] = dh * tanh_c * (o * (1.f - o));
    d.before = dc * f;
  } else if constexpr (kCell == Cell::gru) {
    const float r = saved[0], z = saved[1], n = saved[2], product = saved[3];
    d.x[2] = dh * (1.f - z) * (1.f - n * n);
    d.x[1] = dh * (before - n) * (z * (1.f - z));
    d.x[0] = d.x[2] * product * (r * (1.f - r));
    d.before = dh * z;
  } else {
    d.x[0] = kCell == Cell::rnn_tanh ? dh * (1.f - saved[0] * saved[0]) : saved[0] <= 0.f ? 0.f : dh;
    d.before = 0.f;
  }
#pragma unroll
  for (int gate = 0; gate < kGates<kCell>; gate++) d.h[gate] = d.x[gate];
  if constexpr (kCell == Cell::gru) d.h[2] *= saved[0];
  return d;
}

// ---- zoneout ----

// The share of the old state in the new one: 0 or 1 by a mask, or the same everywhere. At 0 and 1 the other state does not
// enter, be it NaN.
struct Zoneout {
  const uint8_t* keep;
  float expected;

  DLOPS_DEVICE bool on() const { return keep || expected != 0.f; }
  DLOPS_DEVICE float share(int64_t i) const { return keep ? static_cast<float>(keep[i] != 0) : expected; }
};
DLOPS_DEVICE float mix(float share, float before, float after) {
  return share == 0.f ? after : share == 1.f ? before : fmaf(share, before - after, after);
}
// What of a gradient d goes to the state that has this share.
DLOPS_DEVICE float part(float share, float d) { return share == 0.f ? 0.f : share * d; }

}  // namespace dlops::lstm
