// The gradients of GroupNorm. Everything but dx follows from two sums over HW per sample and channel, A of dz xhat and B
// of dz (params.h): pieces of them, their total and what follows per group and channel, sums over samples, then dx.
// No atomics: every run gives the same bits.
//
// Workspace, pairs of float32: pieces [N, pieces, C] of (A, B); then groups [N, G]: what dx needs; then channels [N, C]:
// (1 + scale) (A, B), the terms of dweight and dbias.
#pragma once
#include "cuda.cuh"

namespace dlops::norm {

struct GradientPieces {
  int64_t piece, pieces;
  DLOPS_DEVICE float2* sums(const GroupNormBackwardParams& p) const {
    return reinterpret_cast<float2*>(p.workspace);
  }
  DLOPS_DEVICE float2* groups(const GroupNormBackwardParams& p) const { return sums(p) + p.n * pieces * p.c; }
  DLOPS_DEVICE float2* channels(const GroupNormBackwardParams& p) const { return groups(p) + p.n * p.groups; }
};

// One element's part of A and B, but for the factor rstd of A.
template <class T, class R>
DLOPS_DEVICE void add_gradient(const Affine& k, float dy, float x, bool silu, R& a, R& b) {
  const float dz = through<T>(dy, k.z(x), silu);
  a += dz * (x - k.mean);
  b += dz;
}

// ---- first stage ----

// naive: one thread per plane; so many terms one after the other want float64.
constexpr KernelInfo kGroupBackwardNaive =
    DLOPS_NORM_KERNEL("group_norm_backward", "naive", "256 planes", "group_norm_backward_naive");
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_norm_backward_naive(const GroupNormBackwardParams p, const GradientPieces pieces) {
  for (int64_t plane = flat_thread(); plane < p.n * p.c; plane += flat_threads()) {
    const int64_t sample = plane / p.c, ch = plane % p.c;
    const Affine k = affine_of<T>(p, sample, ch);
    const int64_t base = p.channels_last ? sample * p.hw * p.c + ch : plane * p.hw,
                  step = p.channels_last ? p.c : 1;
    double a = 0, b = 0;
    for (int64_t i = base; i < base + p.hw * step; i += step)
      add_gradient<T>(k, static_cast<float>(static_cast<const T*>(p.dy)[i]),
                      static_cast<float>(static_cast<const T*>(p.x)[i]), p.silu, a, b);
    const float rstd = p.rstd[sample * p.groups + ch / (p.c / p.groups)];
    pieces.sums(p)[plane] = make_float2(static_cast<float>(a * rstd), static_cast<float>(b));
  }
}

// fused, NCHW: one warp per piece of a plane.
constexpr KernelInfo kGroupBackward =
    DLOPS_NORM_KERNEL("group_norm_backward", "fused", "1 plane per warp", "group_norm_sums");
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_norm_sums(const GroupNormBackwardParams p, const GradientPieces pieces, const bool wide) {
  constexpr int V = kVec<T>, kTurns = 2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t task = flat_thread() / 32; task < p.n * p.c * pieces.pieces; task += flat_threads() / 32) {
    const int64_t plane = task / pieces.pieces, s = task % pieces.pieces, sample = plane / p.c,
                  ch = plane % p.c;
    const int64_t begin = s * pieces.piece, end = begin + pieces.piece < p.hw ? begin + pieces.piece : p.hw;
    const Affine k = affine_of<T>(p, sample, ch);
    const T *dy = static_cast<const T*>(p.dy) + plane * p.hw, *x = static_cast<const T*>(p.x) + plane * p.hw;
    Sums<2> sums{};
    for (int64_t i = begin + lane * V; i < end; i += kTurns * 32 * V) {
      uint4 held[kTurns][2];
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        held[t][0] = load(dy + i + t * 32 * V, end - i - t * 32 * V, wide);
        held[t][1] = load(x + i + t * 32 * V, end - i - t * 32 * V, wide);
      }
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        float g[V], v[V];
        unpack<T>(held[t][0], g);
        unpack<T>(held[t][1], v);
#pragma unroll
        for (int j = 0; j < V; j++)
          if (j < end - i - t * 32 * V) add_gradient<T>(k, g[j], v[j], p.silu, sums.v[0], sums.v[1]);
      }
    }
    sums = warp_reduce(sums);
    const float rstd = p.rstd[sample * p.groups + ch / (p.c / p.groups)];
    if (lane == 0)
      pieces.sums(p)[(sample * pieces.pieces + s) * p.c + ch] = make_float2(sums.v[0] * rstd, sums.v[1]);
  }
}

// fused, channels_last: a block takes a tile of channels and a piece of the pixels.
constexpr KernelInfo kGroupSumsLast = DLOPS_NORM_KERNEL(
    "group_norm_backward", "fused", "32 x 16 bytes of channels, 128 pixels", "group_norm_sums_last");
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    group_norm_sums_last(const GroupNormBackwardParams p, const GradientPieces pieces, const ColumnTile tile,
                         const bool wide) {
  constexpr int V = kVec<T>;
  DLOPS_SHARED(float, scratch, [2 * V * kThreads]);
  for (int64_t task = blockIdx.x; task < p.n * tile.pieces * tile.tiles; task += gridDim.x) {
    const ColumnTask t = column_task(tile, task, p.hw, V);
    const int64_t base = t.sample * p.hw * p.c + t.column, left = p.c - t.column;
    Affine k[V];
    float a[V] = {}, b[V] = {};
#pragma unroll
    for (int j = 0; j < V; j++) k[j] = j < left ? affine_of<T>(p, t.sample, t.column + j) : Affine{};
    for (int64_t row = t.begin + threadIdx.y; row < t.end; row += blockDim.y) {
      float g[V], v[V];
      unpack<T>(load(static_cast<const T*>(p.dy) + base + row * p.c, left, wide), g);
      unpack<T>(load(static_cast<const T*>(p.x) + base + row * p.c, left, wide), v);
#pragma unroll
      for (int j = 0; j < V; j++) add_gradient<T>(k[j], g[j], v[j], p.silu, a[j], b[j]);
    }
    const int64_t first = task % tile.tiles * tile.x * V, per = p.c / p.groups;
    float2* out = pieces.sums(p) + (t.sample * pieces.pieces + t.piece) * p.c + first;
    add_columns(a, b, scratch, [&](int column, float sum_a, float sum_b) {
      if (first + column >= p.c) return;
      out[column] = make_float2(sum_a * p.rstd[t.sample * p.groups + (first + column) / per], sum_b);
    });
  }
}

// ---- second stage: one warp per group adds up its channels' pieces ----

constexpr KernelInfo kGroupCombine =
    DLOPS_NORM_KERNEL("group_norm_backward", "fused", "1 group per warp", "group_norm_combine");
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_norm_combine(const GroupNormBackwardParams p, const GradientPieces pieces) {
  const Param<T> weight{p.weight, p.param_dtype}, bias{p.bias, p.param_dtype}, scale{p.scale, p.param_dtype};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t per = p.c / p.groups;
  for (int64_t group = flat_thread() / 32; group < p.n * p.groups; group += flat_threads() / 32) {
    const int64_t sample = group / p.groups, first = group % p.groups * per;
    Sums<2> sums{};  // of k A and k B
    for (int64_t ch = first + lane; ch < first + per; ch += 32) {
      float a = 0, b = 0;
      for (int64_t s = 0; s < pieces.pieces; s++) {
        const float2 part = pieces.sums(p)[(sample * pieces.pieces + s) * p.c + ch];
        a += part.x;
        b += part.y;
      }
      const int64_t i = sample * p.c + ch;
      const float gain = 1.f + scale.at(i, 0.f), w = weight.at(ch, 1.f);
      if (p.dscale) p.dscale[i] = w * a + bias.at(ch, 0.f) * b;
      if (p.dshift) p.dshift[i] = b;
      pieces.channels(p)[i] = make_float2(gain * a, gain * b);
      sums.v[0] += w * gain * a;
      sums.v[1] += w * gain * b;
    }
    sums = warp_reduce(sums);
    // dx = rstd k dz + q (x - mean) + r, with k's factor the slope a of Affine.
    const float size = static_cast<float>(per * p.hw), rstd = p.rstd[group];
    if (lane == 0)
      pieces.groups(p)[group] = make_float2(-rstd * rstd * sums.v[0] / size, -rstd * sums.v[1] / size);
  }
}

// ---- third stage: dx ----

template <class T>
DLOPS_DEVICE float input_gradient(const Affine& k, const float2& qr, float dy, float x, bool silu) {
  return k.a * through<T>(dy, k.z(x), silu) + (qr.x * (x - k.mean) + qr.y);
}

// NCHW: a row is one plane.
constexpr KernelInfo kGroupDx =
    DLOPS_NORM_KERNEL("group_norm_backward", "fused", "128 x 16 bytes", "group_norm_dx");
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    group_norm_dx(const GroupNormBackwardParams p, const GradientPieces pieces, const bool wide) {
  constexpr int V = kVec<T>;
  const int64_t chunks = (p.hw + V - 1) / V;
  for (int64_t plane = first_row(); plane < p.n * p.c; plane += row_step()) {
    const int64_t sample = plane / p.c, ch = plane % p.c, base = plane * p.hw;
    const Affine k = affine_of<T>(p, sample, ch);
    const float2 qr = pieces.groups(p)[sample * p.groups + ch / (p.c / p.groups)];
    for (int64_t chunk = first_chunk(1); chunk < chunks; chunk += chunk_step(1)) {
      const int64_t i = chunk * V;
      float g[V], v[V];
      unpack<T>(load(static_cast<const T*>(p.dy) + base + i, p.hw - i, wide), g);
      unpack<T>(load(static_cast<const T*>(p.x) + base + i, p.hw - i, wide), v);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] = input_gradient<T>(k, qr, g[j], v[j], p.silu);
      store(static_cast<T*>(p.dx) + base + i, pack<T>(g), p.hw - i, wide);
    }
  }
}

// channels_last: a thread keeps the constants of its chunk of channels.
constexpr KernelInfo kGroupDxLast = DLOPS_NORM_KERNEL(
    "group_norm_backward", "fused", "32 x 16 bytes of channels, 128 pixels", "group_norm_dx_last");
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    group_norm_dx_last(const GroupNormBackwardParams p, const GradientPieces pieces, const ColumnTile tile,
                       const bool wide) {
  constexpr int V = kVec<T>;
  for (int64_t task = blockIdx.x; task < p.n * tile.pieces * tile.tiles; task += gridDim.x) {
    const ColumnTask t = column_task(tile, task, p.hw, V);
    const int64_t base = t.sample * p.hw * p.c + t.column, left = p.c - t.column, per = p.c / p.groups;
    Affine k[V];
    float2 qr[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      k[j] = j < left ? affine_of<T>(p, t.sample, t.column + j) : Affine{};
      qr[j] = pieces.groups(p)[t.sample * p.groups + (j < left ? (t.column + j) / per : 0)];
    }
    for (int64_t row = t.begin + threadIdx.y; row < t.end; row += blockDim.y) {
      float g[V], v[V];
      unpack<T>(load(static_cast<const T*>(p.dy) + base + row * p.c, left, wide), g);
      unpack<T>(load(static_cast<const T*>(p.x) + base + row * p.c, left, wide), v);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] = input_gradient<T>(k[j], qr[j], g[j], v[j], p.silu);
      store(static_cast<T*>(p.dx) + base + row * p.c, pack<T>(g), left, wide);
    }
  }
}

}  // namespace dlops::norm
