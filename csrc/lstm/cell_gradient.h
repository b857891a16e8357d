// The derivative of the element-wise half of a step, for a vector of units. d.. is the gradient of what the name says; the
// equations are in params.h.
#pragma once
#include "../cpu/math.h"
#include "params.h"
#include "units.h"

namespace dlops {
namespace {

DLOPS_INLINE Vec one_minus(Vec a) { return set1(1.f) - a; }
DLOPS_INLINE Vec one_minus_square(Vec a) { return fma(-a, a, set1(1.f)); }
DLOPS_INLINE Vec through_sigmoid(Vec d, Vec s) { return d * (s * one_minus(s)); }
DLOPS_INLINE Vec through_tanh(Vec d, Vec t) { return d * one_minus_square(t); }

// Zoneout of h or of c: which share of a state stays as it was before the step. h := keep ? h : h', or the expectation.
struct Zoneout {
  const uint8_t* keep;  // [units] or null
  float share;          // where there is no mask

  // The state after the step. A share of 0 must not multiply an infinite `before`.
  template <class Lanes>
  Vec mix(int64_t j, Lanes lanes, Vec before, Vec after) const {
    if (keep) return select(flags(keep + j, lanes), before, after);
    return share > 0 ? fma(set1(share), before, set1(1.f - share) * after) : after;
  }
  // d, the gradient of the state after the step, to that of the new state; returns that of the state before.
  template <class Lanes>
  Vec split(int64_t j, Lanes lanes, Vec& d) const {
    if (keep) {
      const VecI kept = flags(keep + j, lanes);
      const Vec before = select(kept, d, zero());
      d = select(kept, zero(), d);
      return before;
    }
    if (share == 0.f) return zero();
    const Vec before = d * set1(share);
    d = d * set1(1.f - share);
    return before;
  }
};

// From element `at` of the mask on.
DLOPS_INLINE Zoneout zoneout_of(const uint8_t* keep, int64_t at, float share) {
  return {keep ? keep + at : nullptr, share};
}

// What a step saved, [parts, H].
template <int parts>
struct Saved {
  Vec part[parts];
  template <class Lanes>
  Saved(const float* row, int64_t hidden, int64_t j, Lanes lanes) {
#pragma GCC unroll 4
    for (int k = 0; k < parts; k++) part[k] = get(row + k * hidden + j, lanes);
  }
};

// Gradients of the gates before their nonlinearity.
struct LstmGradient {
  Vec i, f, g, o;
  Vec c_before;
};

// c' = f c + i g as the forward pass rounds it.
DLOPS_INLINE Vec new_cell(const Saved<4>& s, Vec c_before) {
  return fma(s.part[1], c_before, s.part[0] * s.part[2]);
}

// squashed: the tanh that the output gate multiplied. dc: the whole gradient of c'.
DLOPS_INLINE LstmGradient lstm_gradient(const Saved<4>& s, Vec c_before, Vec squashed, Vec dh, Vec dc) {
  const Vec i = s.part[0], f = s.part[1], g = s.part[2], o = s.part[3];
  return {through_sigmoid(dc * g, i), through_sigmoid(dc * c_before, f), through_tanh(dc * i, g),
          through_sigmoid(dh * squashed, o), dc * f};
}

struct GruGradient {
  Vec r, z, n;
  Vec hidden_n;  // of W_hn h + b_hn
  Vec h_before;  // but by W_hh
};

DLOPS_INLINE GruGradient gru_gradient(const Saved<4>& s, Vec h_before, Vec dh) {
  const Vec r = s.part[0], z = s.part[1], n = s.part[2], hidden_n = s.part[3];
  const Vec dn = through_tanh(dh * one_minus(z), n);
  return {through_sigmoid(dn * hidden_n, r), through_sigmoid(dh * (h_before - n), z), dn, dn * r, dh * z};
}

DLOPS_INLINE Vec rnn_gradient(Cell cell, Vec h, Vec dh) {
  return cell == Cell::rnn_tanh ? through_tanh(dh, h) : select(h <= zero(), zero(), dh);
}

}  // namespace
}  // namespace dlops
