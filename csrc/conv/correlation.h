// The one problem that the direct kernels solve. Every pass that slides a kernel is it: the forward pass as it is, the data
// pass as one correlation for each phase of the stride, with the kernel turned round and channels and filters exchanged.
//
//   result[n, f, to + to_step q] = epilogue( sum_{c, k} w[f, c, k] source[n, c, from + step q + dilation k] )
#pragma once
#include "padding.h"

namespace dlops {
namespace {

DLOPS_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DLOPS_INLINE int64_t remainder(int64_t a, int64_t b) {
  return (a % b + b) % b;
}  // in [0, b) for a negative a as well

struct CorrelationAxis {
  int64_t source, result;  // lengths of the two tensors
  int64_t count;           // q in [0, count)
  int64_t from, step, dilation;
  int64_t to, to_step;
  int64_t taps;                 // k in [0, taps) ...
  int64_t first_tap, tap_step;  // ... which the weights keep at first_tap + tap_step k (of `kernel` taps)
  int64_t kernel;
};

struct Correlation {
  CorrelationAxis axis[3];
  int64_t batch, channels, filters, groups;  // of source, of result: all groups together
  bool turned;                               // the weights are [channels, filters / groups, kernel]
  PaddingMode padding_mode;
  bool channels_last;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_filters() const { return filters / groups; }
  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  int64_t depth() const { return taps() * group_channels(); }  // products in a sum
  int64_t kernel() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  int64_t source_pixels() const { return axis[0].source * axis[1].source * axis[2].source; }
  int64_t result_pixels() const { return axis[0].result * axis[1].result * axis[2].result; }
  bool empty() const { return !axis[0].count || !axis[1].count || !axis[2].count; }
};

inline Correlation forward_correlation(const ConvProblem& p) {
  Correlation c{{}, p.batch, p.channels, p.filters, p.groups, false, p.padding_mode, p.channels_last};
  for (int i = 0; i < 3; i++)
    c.axis[i] = {p.in[i],     p.out[i], p.out[i], -p.padding[i], p.stride[i], p.dilation[i], 0, 1,
                 p.kernel[i], 0,        1,        p.kernel[i]};
  return c;
}

inline int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

// Elements r, r + s, ... of dx along an axis of stride s. Element i meets tap k at output (i + padding - k dilation) / s
// where that is whole, which holds for every s' = s / gcd(s, dilation)-th tap, or for none. The last of them comes first.
inline CorrelationAxis data_axis(const ConvProblem& p, int axis, int64_t r) {
  const int64_t s = p.stride[axis], dilation = p.dilation[axis], kernel = p.kernel[axis],
                at = r + p.padding[axis];
  const int64_t divisor = common_divisor(s, dilation), tap_step = s / divisor;
  int64_t first = 0;
  while (first < tap_step && remainder(at - first * dilation, s)) first++;
  const int64_t taps = first < lesser(tap_step, kernel) ? ceil_div(kernel - first, tap_step) : 0;
  const int64_t last = first + (taps - 1) * tap_step;
  CorrelationAxis a{};
  a.source = p.out[axis];
  a.result = p.in[axis];
  a.count = r < p.in[axis] ? ceil_div(p.in[axis] - r, s) : 0;
  a.from = taps ? (at - last * dilation) / s : 0;  // exact
  a.step = 1;
  a.dilation = dilation / divisor;
  a.to = r;
  a.to_step = s;
  a.taps = taps;
  a.first_tap = last;
  a.tap_step = -tap_step;
  a.kernel = kernel;
  return a;
}

inline int64_t data_phases(const ConvProblem& p) { return p.stride[0] * p.stride[1] * p.stride[2]; }

inline Correlation data_correlation(const ConvProblem& p, int64_t phase) {
  Correlation c{{}, p.batch, p.filters, p.channels, p.groups, true, PaddingMode::zeros, p.channels_last};
  for (int i = 2; i >= 0; i--) {
    c.axis[i] = data_axis(p, i, phase % p.stride[i]);
    phase /= p.stride[i];
  }
  return c;
}

// No phase has more taps.
inline int64_t most_data_taps(const ConvProblem& p) {
  int64_t taps = 1;
  for (int i = 0; i < 3; i++)
    taps *= ceil_div(p.kernel[i], p.stride[i] / common_divisor(p.stride[i], p.dilation[i]));
  return taps;
}

}  // namespace
}  // namespace dlops
