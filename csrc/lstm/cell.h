// What a step does with one vector of units: the equations of params.h.
#pragma once
#include "../cpu/math.h"
#include "params.h"
#include "units.h"

namespace dlops {
namespace {

// As many biases as saved parts. lstm: one per gate. gru: r, z, the input's of n, the hidden one of n.
constexpr int biases(Cell cell) { return saved_parts(cell); }

// After a step, before zoneout and projection. saved: see RecurrenceParams.
template <Cell cell>
struct Units {
  Vec h, c;
  Vec saved[saved_parts(cell)];
};

// sigmoid(a) = 1 / (1 + e^-a) and tanh(a) = (e^2a - 1) / (e^2a + 1) are kept as fractions: those that are multiplied or added
// share one division, which costs as much as an exponential.

// e^(factor a) + shift, shift = 1 or -1; the latter keeps its relative accuracy at a = 0. factor a is clamped to [-limit, limit],
// NaN stays NaN. 2^t = scale (1 + rest), as exp2 in cpu/math.h.
DLOPS_INLINE Vec exponential(Vec a, float factor, float limit, float shift) {
  const Vec magic = set1(12582912.f), k = set1(1.44269504f * factor),
            most = set1(limit / (factor < 0 ? -factor : factor));
  a = min(most, max(zero() - most, a));
  const Vec t = fma(a, k, magic), r = fma(a, k, magic - t);
  Vec rest = set1(1.535336196e-04f);
  rest = fma(rest, r, set1(1.339887502e-03f));
  rest = fma(rest, r, set1(9.618436918e-03f));
  rest = fma(rest, r, set1(5.550332367e-02f));
  rest = fma(rest, r, set1(2.402264774e-01f));
  rest = fma(rest, r, set1(6.931471825e-01f));
  const Vec scale = as<Vec>((as<VecU>(t) << 23) + as<VecU>(set1(1.f)));
  return fma(scale, rest * r, scale + set1(shift));
}
// 1 / sigmoid. The limit lets three denominators be multiplied: sigmoid is 1.4e-15 at least, which no sum with 1 sees.
DLOPS_INLINE Vec sigmoid_denominator(Vec a) { return exponential(a, -1.f, 34.f, 1.f); }
// tanh = m / (m + 2); from 9 on it is 1.
DLOPS_INLINE Vec tanh_numerator(Vec a) { return exponential(a, 2.f, 18.f, -1.f); }

// input, hidden: W_ih x and W_hh h of each gate. h, c: before the step. saves: whether `saved` is wanted.
template <Cell cell>
DLOPS_INLINE Units<cell> advance(const Vec* input, const Vec* hidden, const Vec* bias, Vec h, Vec c,
                                 bool saves) {
  const Vec one = set1(1.f), two = set1(2.f);
  auto gate = [&](int g) { return (input[g] + bias[g]) + hidden[g]; };
  Units<cell> u;
  if constexpr (cell == Cell::lstm) {
    const Vec i = sigmoid_denominator(gate(0)), f = sigmoid_denominator(gate(1)),
              o = sigmoid_denominator(gate(3));
    const Vec m = tanh_numerator(gate(2)), g = m + two, ig = i * g, inverse = one / (ig * f);
    u.c = fma(c, ig, m * f) * inverse;
    const Vec top = tanh_numerator(u.c);
    u.h = top / (o * (top + two));
    if (saves) {
      u.saved[0] = g * f * inverse;
      u.saved[1] = ig * inverse;
      u.saved[2] = m * (i * f) * inverse;
      u.saved[3] = one / o;
    }
  } else if constexpr (cell == Cell::gru) {
    const Vec r = one / sigmoid_denominator(gate(0)), z = sigmoid_denominator(gate(1)),
              own = hidden[2] + bias[3];
    const Vec m = tanh_numerator(fma(r, own, input[2] + bias[2])), n = m + two, inverse = one / (z * n);
    u.h = fma(h, n, (z - one) * m) * inverse;
    u.c = c;
    if (saves) {
      u.saved[0] = r;
      u.saved[1] = n * inverse;
      u.saved[2] = m * z * inverse;
      u.saved[3] = own;
    }
  } else {
    const Vec a = gate(0);
    u.h = cell == Cell::rnn_tanh ? tanh(a) : select(a < zero(), zero(), a);  // max(a, 0) would lose NaN
    u.c = c;
    u.saved[0] = u.h;
  }
  return u;
}

// The first n units of a row.
template <class T>
DLOPS_INLINE Vec load_units(const T* p, int n) {
  return n == kLanes ? get(p, Whole()) : get(p, Part{n});
}
template <class T>
DLOPS_INLINE void store_units(T* p, Vec v, int n) {
  n == kLanes ? put(p, v, Whole()) : put(p, v, Part{n});
}
DLOPS_INLINE Vec load_as(Dtype dtype, const void* p, int64_t at, int n) {
  Vec v;
  with_dtype(dtype, [&](const auto* type) { v = load_units(static_cast<decltype(type)>(p) + at, n); });
  return v;
}
DLOPS_INLINE void store_as(Dtype dtype, void* p, int64_t at, Vec v, int n) {
  with_dtype(dtype, [&](auto* type) { store_units(static_cast<decltype(type)>(p) + at, v, n); });
}

// before where it is kept; without a mask, the expectation. A rate of 0 must not multiply an infinite `before`.
DLOPS_INLINE Vec zoneout(Vec before, Vec after, const uint8_t* keep, float rate, int n) {
  if (keep) return select(n == kLanes ? flags(keep, Whole()) : flags(keep, Part{n}), before, after);
  return rate > 0 ? fma(set1(rate), before, set1(1.f - rate) * after) : after;
}

}  // namespace
}  // namespace dlops
