// GroupNorm forward: the naive rung, and the fused one for groups that fit one block's registers, which are read once.
// Larger groups: group_large.cuh.
#pragma once
#include "cuda.cuh"

namespace dlops::norm {

// ---- naive: one block per group, one element at a time, the textbook's two passes and a third to write ----

// f(channel, index) for this thread's elements of a group.
template <class P, class F>
DLOPS_DEVICE void each_of_group(const P& p, int64_t group, F f) {
  const int64_t per = p.c / p.groups, sample = group / p.groups, first = group % p.groups * per;
  const int64_t channel_stride = p.channels_last ? 1 : p.hw, position_stride = p.channels_last ? p.c : 1;
  for (int64_t ch = first; ch < first + per; ch++)
    for (int64_t i = threadIdx.x; i < p.hw; i += blockDim.x)
      f(ch, sample * p.c * p.hw + ch * channel_stride + i * position_stride);
}

constexpr KernelInfo kGroupNaive = DLOPS_NORM_KERNEL("group_norm", "naive", "1 group", "group_norm_naive");
template <class T>
__global__ void __launch_bounds__(kThreads) group_norm_naive(const GroupNormParams p) {
  DLOPS_SHARED(Sums<1>, scratch, [32]);
  const T* x = static_cast<const T*>(p.x);
  const float size = static_cast<float>(p.c / p.groups * p.hw);
  for (int64_t group = blockIdx.x; group < p.n * p.groups; group += gridDim.x) {
    Sums<1> sum{}, squares{};
    each_of_group(p, group, [&](int64_t, int64_t i) { sum.v[0] += static_cast<float>(x[i]); });
    const float mean = block_reduce(sum, scratch).v[0] / size;
    each_of_group(p, group, [&](int64_t, int64_t i) {
      const float d = static_cast<float>(x[i]) - mean;
      squares.v[0] += d * d;
    });
    const float rstd = rstd_of(block_reduce(squares, scratch).v[0], size, p.eps);
    each_of_group(p, group, [&](int64_t ch, int64_t i) {
      const Affine k = affine_of<T>(p, group / p.groups, ch, mean, rstd);
      static_cast<T*>(p.y)[i] = static_cast<T>(activate<T>(k.z(static_cast<float>(x[i])), p.silu));
    });
    if (threadIdx.x == 0) p.mean[group] = mean, p.rstd[group] = rstd;
  }
}

// ---- fused: one block per group keeps it in registers ----

constexpr int kHeld = 8;             // chunks per thread
constexpr int kBlockThreads = 512;   // at most
constexpr int kBlockChannels = 512;  // per group, at most: their constants are kept in shared memory
constexpr int kLastBlockSize =
    16384;  // elements of a channels_last group: more, and its short runs cost too much

// The group must be whole chunks that lie together: an NCHW group is one run, a channels_last one a run per pixel.
inline bool group_fits_block(int64_t per, int64_t hw, bool channels_last, int vec) {
  return (channels_last ? per : per * hw) % vec == 0 && per <= kBlockChannels &&
         per * hw <= (channels_last ? kLastBlockSize : kHeld * kBlockThreads * vec);
}

constexpr KernelInfo kGroupBlock =
    DLOPS_NORM_KERNEL("group_norm", "fused", "1 group of at most 64 KB", "group_norm_block");
template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 4 ? 1 : 2)
    group_norm_block(const GroupNormParams p, const bool wide) {
  constexpr int V = kVec<T>;
  DLOPS_SHARED(Moments<float>, scratch, [32]);
  DLOPS_SHARED(float2, constants, [kBlockChannels]);  // a, b of each channel
  const int per = static_cast<int>(p.c / p.groups), hw = static_cast<int>(p.hw), size = per * hw;
  const int plane = p.channels_last ? 1 : hw;  // elements in a row that share a channel
  const int turn = static_cast<int>(blockDim.x) * V, mine = static_cast<int>(threadIdx.x) * V;
  for (int64_t group = blockIdx.x; group < p.n * p.groups; group += gridDim.x) {
    const int64_t sample = group / p.groups, first = group % p.groups * per;
    const int64_t base = p.channels_last ? sample * p.hw * p.c + first : (sample * p.c + first) * p.hw;
    auto offset = [&](int e) { return base + (p.channels_last ? e / per * p.c + e % per : e); };
    uint4 held[kHeld];
    Moments<float> m{};
#pragma unroll
    for (int h = 0; h < kHeld; h++)
      if (mine + h * turn < size)
        held[h] = load(static_cast<const T*>(p.x) + offset(mine + h * turn), V, wide);
#pragma unroll
    for (int h = 0; h < kHeld; h++) {
      if (mine + h * turn >= size) continue;
      float v[V];
      unpack<T>(held[h], v);
      m.add(v, V);
    }
    m = block_reduce(m, scratch);
    const float rstd = rstd_of(m.m2, m.count, p.eps);
    SIMT_TRACE("mean", m.mean);
    SIMT_TRACE("rstd", rstd);
    if (threadIdx.x == 0) p.mean[group] = m.mean, p.rstd[group] = rstd;
    for (int c = static_cast<int>(threadIdx.x); c < per; c += static_cast<int>(blockDim.x)) {
      const Affine k = affine_of<T>(p, sample, first + c, m.mean, rstd);
      constants[c] = make_float2(k.a, k.b);
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeld; h++) {
      const int e = mine + h * turn;
      if (e >= size) continue;
      float v[V];
      unpack<T>(held[h], v);
      int c = e / plane % per, left = plane - e % plane;
      float2 k = constants[c];
#pragma unroll
      for (int j = 0; j < V; j++) {
        v[j] = activate<T>(Affine{m.mean, k.x, k.y}.z(v[j]), p.silu);
        if (--left == 0) {
          left = plane;
          if (++c == per) c = 0;
          k = constants[c];
        }
      }
      store(static_cast<T*>(p.y) + offset(e), pack<T>(v), V, wide);
    }
    // The barriers of the next block_reduce part these reads of `constants` from the next group's writes.
  }
}

}  // namespace dlops::norm
