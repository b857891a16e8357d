// The naive rung: the formulas of params.h read aloud, one element at a time, the textbook's two passes (mean, then the
// squared deviations), sums in double. Any layout, any size; one task per group or row.
#pragma once
#include "group.h"
#include "rows.h"

namespace dlops {
namespace {

float sigmoid1(float z) { return 1.f / (1.f + __builtin_expf(-z)); }

// Where element `position` of channel `ch` of a sample lies.
template <class P>
int64_t index_of(const P& p, int64_t sample, int64_t ch, int64_t position) {
  return p.channels_last ? (sample * p.hw + position) * p.c + ch : (sample * p.c + ch) * p.hw + position;
}

// f(ch, index) for every element of a group.
template <class P, class F>
void each_of_group(const P& p, int64_t group, F f) {
  const int64_t per = p.c / p.groups, sample = group / p.groups, first = group % p.groups * per;
  for (int64_t ch = first; ch < first + per; ch++)
    for (int64_t i = 0; i < p.hw; i++) f(ch, index_of(p, sample, ch, i));
}

template <class T>
void group_forward_naive(const GroupNormParams& p) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const Affine<GroupNormParams> affine(p);
  const double size = static_cast<double>(p.c / p.groups * p.hw);
  run_phases(p.threads,
             Phase{p.n * p.groups, [&](int64_t group, int) {
                     double sum = 0, squares = 0;
                     each_of_group(p, group, [&](int64_t, int64_t i) { sum += load1(x + i); });
                     const double mean = sum / size;
                     each_of_group(p, group, [&](int64_t, int64_t i) {
                       const double d = load1(x + i) - mean;
                       squares += d * d;
                     });
                     const double rstd = 1 / __builtin_sqrt(squares / size + static_cast<double>(p.eps));
                     p.mean[group] = static_cast<float>(mean);
                     p.rstd[group] = static_cast<float>(rstd);
                     each_of_group(p, group, [&](int64_t ch, int64_t i) {
                       const Channel k = affine.channel(group / p.groups, ch,
                                                        Normalizer(0, 1));  // the slope and offset over xhat
                       const float z = static_cast<float>((load1(x + i) - mean) * rstd) * k.a + k.b;
                       store1(y + i, p.silu ? z * sigmoid1(z) : z);
                     });
                   }});
}

template <class T>
void group_backward_naive(const GroupNormBackwardParams& p) {
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  const GroupBackward back(p);
  const int64_t per = p.c / p.groups;
  cpu::Scratch scratch(static_cast<size_t>(p.n * p.c) * (sizeof(PlaneSums) + sizeof(Channel)));
  PlaneSums* sums = reinterpret_cast<PlaneSums*>(scratch.floats());  // [N, C]
  Channel* channels = reinterpret_cast<Channel*>(sums + p.n * p.c);  // [N, C]
  auto dz = [&](Channel k, int64_t i) {
    const float z = (load1(x + i) - k.mean) * k.a + k.b, s = sigmoid1(z);
    return load1(dy + i) * (p.silu ? s + z * s * (1 - s) : 1.f);
  };
  run_phases(p.threads,
             Phase{p.n * p.groups,
                   [&](int64_t group, int) {
                     const int64_t first = group % p.groups * per;
                     PlaneSums* of = sums + group * per - first;  // by channel
                     Channel* k = channels + group * per - first;
                     for (int64_t ch = first; ch < first + per; ch++) {
                       of[ch] = {0, 0};
                       k[ch] = back.channel(group, ch);
                     }
                     each_of_group(p, group, [&](int64_t ch, int64_t i) {
                       of[ch].a += dz(k[ch], i) * (load1(x + i) - k[ch].mean);
                       of[ch].b += dz(k[ch], i);
                     });
                     if (!dx) return;
                     const GroupMap map = back.group_map(group, k + first, of + first);
                     each_of_group(p, group, [&](int64_t ch, int64_t i) {
                       store1(dx + i, dz(k[ch], i) * k[ch].a + (load1(x + i) - k[ch].mean) * map.q + map.r);
                     });
                   }},
             Phase{ceil_div(p.c, GroupBackward::kChannels),
                   [&](int64_t task, int) { back.parameters(task, sums); }});
}

template <class T>
void rows_forward_naive(const RowNormParams& p) {
  const FloatParam weight(p.weight, p.param_dtype, p.d, 1.f), bias(p.bias, p.param_dtype, p.d, 0.f);
  const double size = static_cast<double>(p.d);
  run_phases(p.threads,
             Phase{p.rows, [&](int64_t row, int) {
                     const int64_t begin = row * p.d, end = begin + p.d;
                     const T* s = static_cast<const T*>(p.residual ? p.sum : p.x);
                     for (int64_t i = begin; p.residual && i < end; i++)
                       store1(static_cast<T*>(p.sum) + i, load1(static_cast<const T*>(p.x) + i) +
                                                              load1(static_cast<const T*>(p.residual) + i));
                     double mean = 0, squares = 0;
                     for (int64_t i = begin; !p.rms && i < end; i++) mean += load1(s + i) / size;
                     for (int64_t i = begin; i < end; i++) {
                       const double d = load1(s + i) - mean;
                       squares += d * d;
                     }
                     const double rstd = 1 / __builtin_sqrt(squares / size + static_cast<double>(p.eps));
                     if (!p.rms) p.mean[row] = static_cast<float>(mean);
                     p.rstd[row] = static_cast<float>(rstd);
                     for (int64_t i = begin; i < end; i++) {
                       const float xhat = static_cast<float>((load1(s + i) - mean) * rstd);
                       store1(static_cast<T*>(p.y) + i, xhat * weight[i - begin] + bias[i - begin]);
                     }
                   }});
}

template <class T>
void rows_backward_naive(const RowNormBackwardParams& p) {
  const FloatParam weight(p.weight, p.param_dtype, p.d, 1.f);
  const T *dy = static_cast<const T*>(p.dy), *s = static_cast<const T*>(p.s);
  const double size = static_cast<double>(p.d);
  auto xhat = [&](int64_t row, int64_t i) {
    return (load1(s + i) - (p.rms ? 0.f : p.mean[row])) * p.rstd[row];
  };
  run_phases(p.threads,
             Phase{p.dx ? p.rows : 0,
                   [&](int64_t row, int) {
                     const int64_t begin = row * p.d, end = begin + p.d;
                     double g = 0, gx = 0;
                     for (int64_t i = begin; i < end; i++) {
                       const double gi = load1(dy + i) * weight[i - begin];
                       g += gi / size;
                       gx += gi * xhat(row, i) / size;
                     }
                     for (int64_t i = begin; i < end; i++) {
                       const double gi = load1(dy + i) * weight[i - begin];
                       const double d = p.rstd[row] * (gi - (p.rms ? 0 : g) - xhat(row, i) * gx);
                       const float extra = p.dsum ? load1(static_cast<const T*>(p.dsum) + i) : 0.f;
                       store1(static_cast<T*>(p.dx) + i, static_cast<float>(d) + extra);
                     }
                   }},
             Phase{p.dweight || p.dbias ? p.d : 0, [&](int64_t i, int) {
                     double dweight = 0, dbias = 0;
                     for (int64_t row = 0; row < p.rows; row++) {
                       dweight += load1(dy + row * p.d + i) * xhat(row, row * p.d + i);
                       dbias += load1(dy + row * p.d + i);
                     }
                     if (p.dweight) p.dweight[i] = static_cast<float>(dweight);
                     if (p.dbias) p.dbias[i] = static_cast<float>(dbias);
                   }});
}

}  // namespace
}  // namespace dlops
