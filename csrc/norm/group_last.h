// GroupNorm on channels_last, [N, HW, C]: lanes are channels. The unit is a chunk of whole rows (one row: the C channels
// of one position); sums run down the rows, one accumulator per channel in L1, four rows at a time so that an accumulator
// is loaded and stored once per four elements. Channels of a group meet at the end of a chunk.
//
// Needs C >= kLanes: the last vector of a row reaches back, see load_last.
#pragma once
#include "group.h"

namespace dlops {
namespace {

// 128 KiB of float32 per chunk: two passes over it hit L2. At most 128 rows: few enough additions to follow each other in
// one float32.
struct Chunks {
  explicit Chunks(int64_t c, int64_t hw)
      : rows(smaller(larger(32768 / c, 1), 128)), per_sample(ceil_div(hw, rows)), hw(hw) {}
  int64_t begin(int64_t chunk) const { return chunk * rows; }
  int64_t count(int64_t chunk) const { return smaller(rows, hw - chunk * rows); }
  int64_t rows, per_sample, hw;
};

// f(at, slot) for the vectors of a row: `at` is the first channel, `slot` where the vector's accumulator lies. Only the
// last vector, which reaches back, has a slot of its own.
template <class F>
DLOPS_INLINE void row_vectors(int64_t c, F f) {
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) f(i, i);
  if (i < c) f(c - kLanes, i);
}
DLOPS_INLINE int64_t slots(int64_t c) { return ceil_div(c, kLanes) * kLanes; }

// From slots to channels: the last vector's fresh lanes move down to where they belong.
DLOPS_INLINE void unslot(float* sums, int64_t c) {
  const int64_t rest = c % kLanes, whole = c - rest;
  for (int64_t j = 0; j < rest; j++) sums[whole + j] = sums[whole + kLanes - rest + j];
}

// f(row, rows) in fours, then one at a time; `rows` is a compile-time constant.
template <class F>
DLOPS_INLINE void by_four_rows(int64_t count, F f) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) f(r, std::integral_constant<int, 4>());
  for (; r < count; r++) f(r, std::integral_constant<int, 1>());
}

// out[g] = sum of v over the channels of group g. The loop over groups is the inner one: its additions are independent.
DLOPS_INLINE void sum_groups(const float* v, int64_t groups, int64_t per, double* out) {
  for (int64_t g = 0; g < groups; g++) out[g] = 0;
  for (int64_t k = 0; k < per; k++)
    for (int64_t g = 0; g < groups; g++) out[g] += v[g * per + k];
}

// Moments of every group of one chunk, in two passes about the group's mean within the chunk. work: 3 slots(c) floats and
// 2 groups doubles.
template <class T>
DLOPS_LEAF void chunk_moments(const T* x, int64_t count, int64_t c, int64_t groups, float* work,
                              Moments* out) {
  const int64_t per = c / groups, wide = slots(c);
  float *s1 = work, *s2 = work + wide, *centre = work + 2 * wide;
  double *sum1 = reinterpret_cast<double*>(work + 3 * wide), *sum2 = sum1 + groups;
  const double n = static_cast<double>(count * per);

  memset(s1, 0, static_cast<size_t>(wide) * sizeof(float));
  by_four_rows(count, [&](int64_t r, auto rows) {
    row_vectors(c, [&](int64_t at, int64_t slot) {
      Vec sum = load(x + r * c + at);
      for (int j = 1; j < rows; j++) sum = sum + load(x + (r + j) * c + at);
      store(s1 + slot, load(s1 + slot) + sum);
    });
  });
  unslot(s1, c);
  sum_groups(s1, groups, per, sum1);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t k = 0; k < per; k++) centre[g * per + k] = static_cast<float>(sum1[g] / n);

  memset(s1, 0, static_cast<size_t>(2 * wide) * sizeof(float));
  by_four_rows(count, [&](int64_t r, auto rows) {
    row_vectors(c, [&](int64_t at, int64_t slot) {
      const Vec middle = load(centre + at);
      Vec a = load(s1 + slot), b = load(s2 + slot);
      for (int j = 0; j < rows; j++) {
        const Vec d = load(x + (r + j) * c + at) - middle;
        a = a + d;
        b = fma(d, d, b);
      }
      store(s1 + slot, a);
      store(s2 + slot, b);
    });
  });
  unslot(s1, c);
  unslot(s2, c);
  sum_groups(s1, groups, per, sum1);
  sum_groups(s2, groups, per, sum2);
  for (int64_t g = 0; g < groups; g++) out[g] = about(centre[g * per], n, sum1[g], sum2[g]);
}

// The channels' coefficients as arrays: loaded a vector at a time.
struct ChannelArrays {
  ChannelArrays(float* memory, int64_t c) : mean(memory), a(memory + c), b(memory + 2 * c) {}
  void set(int64_t ch, Channel k) const {
    mean[ch] = k.mean;
    a[ch] = k.a;
    b[ch] = k.b;
  }
  float *mean, *a, *b;
};

template <class T, bool kSilu>
DLOPS_LEAF void apply_rows(const T* x, T* y, int64_t count, int64_t c, ChannelArrays k) {
  for (int64_t r = 0; r < count; r++, x += c, y += c) {
    auto one = [&](Vec v, int64_t at) {
      return activate<kSilu>(fma(v - load(k.mean + at), load(k.a + at), load(k.b + at)));
    };
    const Vec last = load(x + c - kLanes);  // before anything is written: y may be x
    for (int64_t i = 0; i + kLanes <= c; i += kLanes) store(y + i, one(load(x + i), i));
    if (c % kLanes) store(y + c - kLanes, one(last, c - kLanes));
  }
}

template <class T, bool kSilu>
void group_last_forward(const GroupNormParams& p) {
  const int64_t per = p.c / p.groups;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const Affine<GroupNormParams> affine(p);
  const Chunks chunks(p.c, p.hw);
  const int64_t work_floats = ceil_div(3 * slots(p.c) + 4 * p.groups, kLanes) * kLanes;
  const int workers = static_cast<int>(larger(p.threads, 1));

  cpu::Scratch work(static_cast<size_t>(workers * work_floats) * sizeof(float));
  cpu::Scratch coefficients(static_cast<size_t>(p.n * 3 * p.c) * sizeof(float));
  cpu::Scratch partial(static_cast<size_t>(p.n * chunks.per_sample * p.groups) * sizeof(Moments));
  Moments* parts = reinterpret_cast<Moments*>(partial.floats());  // [N, chunks, G]

  auto reduce = [&](int64_t task, int worker) {
    const int64_t sample = task / chunks.per_sample, chunk = task % chunks.per_sample;
    chunk_moments(x + (sample * p.hw + chunks.begin(chunk)) * p.c, chunks.count(chunk), p.c, p.groups,
                  work.floats() + worker * work_floats, parts + task * p.groups);
  };
  auto finish = [&](int64_t sample, int) {
    const ChannelArrays arrays(coefficients.floats() + sample * 3 * p.c, p.c);
    for (int64_t g = 0; g < p.groups; g++) {
      Moments m = parts[sample * chunks.per_sample * p.groups + g];
      for (int64_t i = 1; i < chunks.per_sample; i++)
        m.merge(parts[(sample * chunks.per_sample + i) * p.groups + g]);
      const Normalizer whole(m, p.eps);
      p.mean[sample * p.groups + g] = whole.mean;
      p.rstd[sample * p.groups + g] = whole.rstd;
      for (int64_t ch = g * per; ch < (g + 1) * per; ch++) arrays.set(ch, affine.channel(sample, ch, whole));
    }
  };
  auto write = [&](int64_t task, int) {
    const int64_t sample = task / chunks.per_sample, chunk = task % chunks.per_sample;
    const int64_t at = (sample * p.hw + chunks.begin(chunk)) * p.c;
    apply_rows<T, kSilu>(x + at, y + at, chunks.count(chunk), p.c,
                         ChannelArrays(coefficients.floats() + sample * 3 * p.c, p.c));
  };

  if (p.threads <= 1 || p.n >= 2 * p.threads) {
    run_phases(p.threads, Phase{p.n, [&](int64_t sample, int worker) {
                                  const int64_t first = sample * chunks.per_sample,
                                                end = first + chunks.per_sample;
                                  for (int64_t i = first; i < end; i++) reduce(i, worker);
                                  finish(sample, worker);
                                  for (int64_t i = first; i < end; i++) write(i, worker);
                                }});
  } else {
    run_phases(p.threads, Phase{p.n * chunks.per_sample, reduce}, Phase{p.n, finish},
               Phase{p.n * chunks.per_sample, write});
  }
}

// ---- backward ----

// Per channel of one chunk: sums of dz (x - mean) and of dz, in slots.
template <class T, bool kSilu>
DLOPS_LEAF void chunk_sums(const T* dy, const T* x, int64_t count, int64_t c, ChannelArrays k, float* a,
                           float* b) {
  memset(a, 0, static_cast<size_t>(slots(c)) * sizeof(float));
  memset(b, 0, static_cast<size_t>(slots(c)) * sizeof(float));
  by_four_rows(count, [&](int64_t r, auto rows) {
    row_vectors(c, [&](int64_t at, int64_t slot) {
      const Vec mean = load(k.mean + at), slope = load(k.a + at), offset = load(k.b + at);
      Vec sum_a = load(a + slot), sum_b = load(b + slot);
      for (int j = 0; j < rows; j++) {
        const int64_t i = (r + j) * c + at;
        const Vec d = load(x + i) - mean, dz = through<kSilu>(load(dy + i), fma(d, slope, offset));
        sum_a = fma(dz, d, sum_a);
        sum_b = sum_b + dz;
      }
      store(a + slot, sum_a);
      store(b + slot, sum_b);
    });
  });
  unslot(a, c);
  unslot(b, c);
}

template <class T, bool kSilu>
DLOPS_LEAF void rows_dx(const T* dy, const T* x, T* dx, int64_t count, int64_t c, ChannelArrays k,
                        const float* q, const float* r) {
  for (int64_t row = 0; row < count; row++, dy += c, x += c, dx += c) {
    row_vectors(c, [&](int64_t at, int64_t) {
      const Vec d = load(x + at) - load(k.mean + at), slope = load(k.a + at);
      const Vec dz = through<kSilu>(load(dy + at), fma(d, slope, load(k.b + at)));
      store(dx + at, fma(dz, slope, fma(d, load(q + at), load(r + at))));
    });
  }
}

template <class T, bool kSilu>
void group_last_backward(const GroupNormBackwardParams& p) {
  const int64_t wide = slots(p.c), per = p.c / p.groups;
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  const GroupBackward back(p);
  const Chunks chunks(p.c, p.hw);

  // Per sample: mean, a, b of the forward map, then q and r of dx, [C] each; and once as structs, [C].
  cpu::Scratch coefficients(static_cast<size_t>(p.n * 5 * p.c) * sizeof(float));
  cpu::Scratch structs(static_cast<size_t>(p.n * p.c) * sizeof(Channel));
  cpu::Scratch partial(static_cast<size_t>(p.n * chunks.per_sample * 2 * wide) *
                       sizeof(float));  // [N, chunks, 2, slots]
  cpu::Scratch totals(static_cast<size_t>(p.n * p.c) * sizeof(PlaneSums));
  Channel* channels = reinterpret_cast<Channel*>(structs.floats());
  PlaneSums* sums = reinterpret_cast<PlaneSums*>(totals.floats());  // [N, C]
  auto arrays = [&](int64_t sample) { return ChannelArrays(coefficients.floats() + sample * 5 * p.c, p.c); };
  auto q = [&](int64_t sample) { return coefficients.floats() + (sample * 5 + 3) * p.c; };

  auto prepare = [&](int64_t sample, int) {
    for (int64_t ch = 0; ch < p.c; ch++) {
      const Channel k = back.channel(sample * p.groups + ch / per, ch);
      channels[sample * p.c + ch] = k;
      arrays(sample).set(ch, k);
    }
  };
  auto reduce = [&](int64_t task, int) {
    const int64_t sample = task / chunks.per_sample, chunk = task % chunks.per_sample;
    const int64_t at = (sample * p.hw + chunks.begin(chunk)) * p.c;
    float* part = partial.floats() + task * 2 * wide;
    chunk_sums<T, kSilu>(dy + at, x + at, chunks.count(chunk), p.c, arrays(sample), part, part + wide);
  };
  auto finish = [&](int64_t sample, int) {
    PlaneSums* mine = sums + sample * p.c;
    for (int64_t ch = 0; ch < p.c; ch++) mine[ch] = {0, 0};
    for (int64_t i = 0; i < chunks.per_sample; i++) {
      const float* part = partial.floats() + (sample * chunks.per_sample + i) * 2 * wide;
      for (int64_t ch = 0; ch < p.c; ch++) {
        mine[ch].a += part[ch];
        mine[ch].b += part[wide + ch];
      }
    }
    for (int64_t g = 0; g < p.groups; g++) {
      const GroupMap map =
          back.group_map(sample * p.groups + g, channels + sample * p.c + g * per, mine + g * per);
      for (int64_t ch = g * per; ch < (g + 1) * per; ch++) {
        q(sample)[ch] = map.q;
        q(sample)[p.c + ch] = map.r;
      }
    }
  };
  auto write = [&](int64_t task, int) {
    const int64_t sample = task / chunks.per_sample, chunk = task % chunks.per_sample;
    const int64_t at = (sample * p.hw + chunks.begin(chunk)) * p.c;
    rows_dx<T, kSilu>(dy + at, x + at, dx + at, chunks.count(chunk), p.c, arrays(sample), q(sample),
                      q(sample) + p.c);
  };

  const Phase parameters{ceil_div(p.c, GroupBackward::kChannels),
                         [&](int64_t task, int) { back.parameters(task, sums); }};
  if (p.threads <= 1 || p.n >= 2 * p.threads) {
    run_phases(p.threads,
               Phase{p.n,
                     [&](int64_t sample, int worker) {
                       const int64_t first = sample * chunks.per_sample, end = first + chunks.per_sample;
                       prepare(sample, worker);
                       for (int64_t i = first; i < end; i++) reduce(i, worker);
                       finish(sample, worker);
                       for (int64_t i = first; dx && i < end; i++) write(i, worker);
                     }},
               parameters);
  } else {
    run_phases(p.threads, Phase{p.n, prepare}, Phase{p.n * chunks.per_sample, reduce}, Phase{p.n, finish},
               Phase{dx ? p.n * chunks.per_sample : 0, write}, parameters);
  }
}

}  // namespace
}  // namespace dlops
