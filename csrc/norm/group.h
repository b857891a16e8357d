// GroupNorm on NCHW: a group is one contiguous run of C/G planes, each plane HW elements of one channel.
//
// Few groups and many threads: the work splits into pieces (three loops with a barrier between). Otherwise a thread keeps
// a group, which then is in its cache when the second pass reads it. Pieces are cut alike both ways, and partial results
// are merged in the order of the pieces, so the bits do not depend on the choice.
#pragma once
#include "moments.h"

namespace dlops {
namespace {

// z = (x - mean) * a + b for one channel of one sample.
struct Channel { float mean, a, b; };

// From the parameters to a channel's map. k = weight (1 + scale) is the slope of z over xhat, b what is added.
template <class P>
class Affine {
 public:
  explicit Affine(const P& p)
      : weight(p.weight, p.param_dtype, p.c, 1.f),
        bias(p.bias, p.param_dtype, p.c, 0.f),
        scale(p.scale, p.param_dtype, p.scale ? p.n * p.c : 0, 0.f),
        shift(p.shift, p.param_dtype, p.shift ? p.n * p.c : 0, 0.f),
        p_(p) {}
  float gain(int64_t sample, int64_t ch) const { return p_.scale ? 1.f + scale[sample * p_.c + ch] : 1.f; }
  Channel channel(int64_t sample, int64_t ch, Normalizer m) const {
    const float g = gain(sample, ch), a = m.rstd * (weight[ch] * g);
    const float b = __builtin_fmaf(bias[ch], g, p_.shift ? shift[sample * p_.c + ch] : 0.f);
    return {m.mean, a, __builtin_fmaf(-m.low, a, b)};
  }
  const FloatParam weight, bias, scale, shift;

 private:
  const P& p_;
};

// Planes [0, planes) of hw elements as tasks of about `size`: pieces of large planes, runs of small ones.
struct Tiles {
  Tiles(int64_t planes, int64_t hw, int64_t size)
      : planes(planes),
        hw(hw),
        size(size),
        per_plane(ceil_div(hw, size)),
        run(per_plane > 1 ? 1 : larger(1, size / hw)),
        tasks(per_plane > 1 ? planes * per_plane : ceil_div(planes, run)) {}
  // f(plane, piece, begin, end)
  template <class F>
  void each(int64_t task, F f) const {
    if (per_plane > 1) {
      const int64_t piece = task % per_plane, begin = piece * size;
      f(task / per_plane, piece, begin, smaller(begin + size, hw));
    } else {
      for (int64_t i = task * run; i < smaller((task + 1) * run, planes); i++)
        f(i, int64_t{0}, int64_t{0}, hw);
    }
  }
  int64_t planes, hw, size, per_plane, run, tasks;
};

template <bool kSilu>
DLOPS_INLINE Vec activate(Vec z) {
  return kSilu ? silu(z) : z;
}

// dz = dy * f'(z): silu'(z) = s + z s (1 - s), s = sigmoid(z).
template <bool kSilu>
DLOPS_INLINE Vec through(Vec dy, Vec z) {
  if (!kSilu) return dy;
  const Vec s = sigmoid(z);
  return dy * fma(z * s, set1(1.f) - s, s);
}

// `count` planes of n elements. y may be x: the last vector of a plane, which overlaps the one before it, is read before
// anything is written. `next` is what the thread reads after these planes: the arithmetic of SiLU hides its way from
// memory. Backwards, because the end of a large group is still in the cache.
template <class T, bool kSilu>
DLOPS_LEAF void apply_planes(const T* x, T* y, int64_t n, int64_t count, const Channel* channels,
                             const T* next) {
  for (int64_t plane = count - 1; plane >= 0; plane--) {
    const T *from = x + plane * n, *ahead = next + plane * n;
    T* to = y + plane * n;
    const Vec mean = set1(channels[plane].mean), a = set1(channels[plane].a), b = set1(channels[plane].b);
    auto one = [&](Vec v) { return activate<kSilu>(fma(v - mean, a, b)); };
    const Vec last = n % kLanes ? load_last(from, n) : zero();
    whole_vectors_ahead(n, ahead, [&](int64_t i) { store(to + i, one(load(from + i))); });
    if (n % kLanes) store_last(to, n, one(last));
  }
}

template <class T, bool kSilu>
void group_forward(const GroupNormParams& p) {
  const int64_t per = p.c / p.groups, size = per * p.hw, groups = p.n * p.groups,
                pieces = ceil_div(size, kPiece);
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const Affine<GroupNormParams> affine(p);
  cpu::Scratch channels_memory(static_cast<size_t>(p.n * p.c) * sizeof(Channel));
  Channel* channels = reinterpret_cast<Channel*>(channels_memory.floats());  // [N, C]

  auto finish = [&](int64_t group, const Moments& moments) {
    const Normalizer m(moments, p.eps);
    p.mean[group] = m.mean;
    p.rstd[group] = m.rstd;
    const int64_t sample = group / p.groups, first = group % p.groups * per;
    for (int64_t i = 0; i < per; i++) channels[group * per + i] = affine.channel(sample, first + i, m);
  };

  if (p.threads <= 1 || groups >= 2 * p.threads) {
    // A group that leaves half of a 512 KiB L2 is fetched during the one before it; the guess which group that is may be
    // wrong with several threads, and then costs a little.
    const int64_t ahead =
        size * static_cast<int64_t>(sizeof(T)) <= 256 * 1024 ? size * larger(p.threads, 1) : 0;
    run_phases(p.threads, Phase{groups, [&](int64_t group, int) {
                                  const T* from = x + group * size;
                                  finish(group, moments(from, size));
                                  const T* next =
                                      from + ahead + size <= x + groups * size ? from + ahead : from;
                                  apply_planes<T, kSilu>(from, y + group * size, p.hw, per,
                                                         channels + group * per, next);
                                }});
    return;
  }
  cpu::Scratch scratch(static_cast<size_t>(groups * pieces) * sizeof(Moments));
  Moments* parts = reinterpret_cast<Moments*>(scratch.floats());
  const Tiles tiles(p.n * p.c, p.hw, kPiece);
  run_phases(p.threads,
             Phase{groups * pieces,
                   [&](int64_t task, int) {
                     const int64_t begin = task % pieces * kPiece;
                     parts[task] =
                         piece_moments(x + task / pieces * size + begin, smaller(size - begin, kPiece));
                   }},
             Phase{groups,
                   [&](int64_t group, int) {
                     for (int64_t i = 1; i < pieces; i++)
                       parts[group * pieces].merge(parts[group * pieces + i]);
                     finish(group, parts[group * pieces]);
                   }},
             Phase{tiles.tasks, [&](int64_t task, int) {
                     tiles.each(task, [&](int64_t plane, int64_t, int64_t begin, int64_t end) {
                       const int64_t at = plane * p.hw + begin;
                       apply_planes<T, kSilu>(x + at, y + at, end - begin, 1, channels + plane, x + at);
                     });
                   }});
}

// ---- backward ----

// Sums over HW of one plane: dz * (x - mean), and dz.
struct PlaneSums { double a, b; };

// `count` runs of n elements, `stride` apart, each with its channel.
template <class T, bool kSilu>
DLOPS_LEAF void plane_sums(const T* dy, const T* x, int64_t n, int64_t count, int64_t stride,
                           const Channel* channels, PlaneSums* out, int64_t out_stride) {
  for (int64_t plane = 0; plane < count; plane++, dy += stride, x += stride) {
    Sums a, b;
    const Vec mean = set1(channels[plane].mean), slope = set1(channels[plane].a),
              offset = set1(channels[plane].b);
    auto add = [&](int j, Vec d, Vec dz) {
      const int to =
          kSilu ? 0 : j;  // SiLU takes longer than an addition: one sum will do, and leaves it the registers
      a[to] = fma(dz, d, a[to]);
      b[to] = b[to] + dz;
    };
    const int64_t end = whole_vectors(n, [&](int j, int64_t i) {
      const Vec d = load(x + i) - mean;
      add(j, d, through<kSilu>(load(dy + i), fma(d, slope, offset)));
    });
    if (end < n) {
      const VecI last = fresh(n);
      const Vec d = select(last, load_last(x, n) - mean, zero());
      add(1, d, select(last, through<kSilu>(load_last(dy, n), fma(d, slope, offset)), zero()));
    }
    out[plane * out_stride] = {a.total(), b.total()};
  }
}

// What all channels of a group share of dx = dz * a + (x - mean) * q + r.
struct GroupMap { float q, r; };

template <class T, bool kSilu>
DLOPS_LEAF void plane_dx(const T* dy, const T* x, T* dx, int64_t n, int64_t count, const Channel* channels,
                         GroupMap m) {
  for (int64_t plane = count - 1; plane >= 0; plane--) {  // backwards, as the forward pass
    const T *g = dy + plane * n, *v = x + plane * n;
    T* to = dx + plane * n;
    const Vec mean = set1(channels[plane].mean), slope = set1(channels[plane].a),
              offset = set1(channels[plane].b);
    const Vec q = set1(m.q), r = set1(m.r);
    auto one = [&](Vec gi, Vec xi) {
      const Vec d = xi - mean;
      return fma(through<kSilu>(gi, fma(d, slope, offset)), slope, fma(d, q, r));
    };
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(to + i, one(load(g + i), load(v + i)));
    if (n % kLanes) store_last(to, n, one(load_last(g, n), load_last(v, n)));
  }
}

// What both layouts share: from A = sum dz (x - mean) and B = sum dz of every [N, C] to q and r, and to the gradients of
// the parameters.
class GroupBackward {
 public:
  explicit GroupBackward(const GroupNormBackwardParams& p) : p_(p), affine_(p), per_(p.c / p.groups) {}

  Channel channel(int64_t group, int64_t ch) const {
    Normalizer m(0, 0);
    m.mean = p_.mean[group];
    m.rstd = p_.rstd[group];
    return affine_.channel(group / p_.groups, ch, m);
  }
  // channels, sums: of the group. a = rstd k, so sums with k are sums with a, over rstd.
  GroupMap group_map(int64_t group, const Channel* channels, const PlaneSums* sums) const {
    double a = 0, b = 0;
    for (int64_t i = 0; i < per_; i++) {
      a += channels[i].a * sums[i].a;
      b += channels[i].a * sums[i].b;
    }
    const double rstd = p_.rstd[group], size = static_cast<double>(per_ * p_.hw);
    return {static_cast<float>(-rstd * rstd * a / size), static_cast<float>(-b / size)};
  }
  // Channels [task kChannels, ...) of sums [N, C].
  void parameters(int64_t task, const PlaneSums* sums) const {
    for (int64_t ch = task * kChannels; ch < smaller((task + 1) * kChannels, p_.c); ch++)
      channel_parameters(ch, sums);
  }
  static constexpr int64_t kChannels = 256;

 private:
  void channel_parameters(int64_t ch, const PlaneSums* sums) const {
    double dweight = 0, dbias = 0;
    for (int64_t n = 0; n < p_.n; n++) {
      const int64_t i = n * p_.c + ch;
      const double a = sums[i].a * p_.rstd[n * p_.groups + ch / per_], b = sums[i].b,
                   gain = affine_.gain(n, ch);
      if (p_.dscale) p_.dscale[i] = static_cast<float>(affine_.weight[ch] * a + affine_.bias[ch] * b);
      if (p_.dshift) p_.dshift[i] = static_cast<float>(b);
      dweight += gain * a;
      dbias += gain * b;
    }
    if (p_.dweight) p_.dweight[ch] = static_cast<float>(dweight);
    if (p_.dbias) p_.dbias[ch] = static_cast<float>(dbias);
  }

  const GroupNormBackwardParams& p_;
  Affine<GroupNormBackwardParams> affine_;
  int64_t per_;
};

template <class T, bool kSilu>
void group_backward(const GroupNormBackwardParams& p) {
  const int64_t per = p.c / p.groups, groups = p.n * p.groups, planes = p.n * p.c;
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  const GroupBackward back(p);
  const Tiles tiles(planes, p.hw, 64 * kLanes);  // few enough additions to follow each other in one float32
  cpu::Scratch scratch(static_cast<size_t>(planes * (tiles.per_plane + 1)) * sizeof(PlaneSums));
  cpu::Scratch maps_memory(static_cast<size_t>(planes) * sizeof(Channel) +
                           static_cast<size_t>(groups) * sizeof(GroupMap));
  PlaneSums* parts = reinterpret_cast<PlaneSums*>(scratch.floats());     // [N, C, pieces]
  PlaneSums* sums = parts + planes * tiles.per_plane;                    // [N, C]
  Channel* channels = reinterpret_cast<Channel*>(maps_memory.floats());  // [N, C]
  GroupMap* maps = reinterpret_cast<GroupMap*>(channels + planes);       // [N, G]

  auto prepare = [&](int64_t group) {
    const int64_t first = group % p.groups * per;
    for (int64_t i = 0; i < per; i++) channels[group * per + i] = back.channel(group, first + i);
  };
  auto reduce = [&](int64_t plane, int64_t piece, int64_t begin, int64_t end) {
    const int64_t at = plane * p.hw + begin;
    plane_sums<T, kSilu>(dy + at, x + at, end - begin, 1, p.hw, channels + plane,
                         parts + plane * tiles.per_plane + piece, 1);
  };
  auto finish = [&](int64_t group) {
    for (int64_t i = group * per; i < (group + 1) * per; i++) {
      sums[i] = {0, 0};
      for (int64_t piece = 0; piece < tiles.per_plane; piece++) {
        sums[i].a += parts[i * tiles.per_plane + piece].a;
        sums[i].b += parts[i * tiles.per_plane + piece].b;
      }
    }
    maps[group] = back.group_map(group, channels + group * per, sums + group * per);
  };
  const Phase parameters{ceil_div(p.c, GroupBackward::kChannels),
                         [&](int64_t task, int) { back.parameters(task, sums); }};
  if (p.threads <= 1 || groups >= 2 * p.threads) {
    run_phases(p.threads,
               Phase{groups,
                     [&](int64_t group, int) {
                       const int64_t first = group * per, at = first * p.hw;
                       prepare(group);
                       for (int64_t piece = 0; piece < tiles.per_plane; piece++) {
                         const int64_t begin = piece * tiles.size, n = smaller(tiles.size, p.hw - begin);
                         plane_sums<T, kSilu>(dy + at + begin, x + at + begin, n, per, p.hw, channels + first,
                                              parts + first * tiles.per_plane + piece, tiles.per_plane);
                       }
                       finish(group);
                       if (dx)
                         plane_dx<T, kSilu>(dy + at, x + at, dx + at, p.hw, per, channels + first,
                                            maps[group]);
                     }},
               parameters);
  } else {
    run_phases(p.threads, Phase{groups, [&](int64_t group, int) { prepare(group); }},
               Phase{tiles.tasks, [&](int64_t task, int) { tiles.each(task, reduce); }},
               Phase{groups, [&](int64_t group, int) { finish(group); }},
               Phase{dx ? tiles.tasks : 0,
                     [&](int64_t task, int) {
                       tiles.each(task, [&](int64_t plane, int64_t, int64_t begin, int64_t end) {
                         const int64_t at = plane * p.hw + begin;
                         plane_dx<T, kSilu>(dy + at, x + at, dx + at, end - begin, 1, channels + plane,
                                            maps[plane / per]);
                       });
                     }},
               parameters);
  }
}

}  // namespace
}  // namespace dlops
