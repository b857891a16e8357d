// GroupNorm forward for groups too large for one block, in three launches: partial moments of pieces, their merger, and
// the map, which reads x again (from L2 where it fits).
#pragma once
#include "cuda.cuh"

namespace dlops::norm {

// ---- partial moments of pieces: [N, pieces, columns] pairs (mean, m2) ----

// NCHW: columns are groups, a piece is group_piece(size) elements of one.
constexpr KernelInfo kGroupStats =
    DLOPS_NORM_KERNEL("group_norm", "fused", "8192 elements of a group", "group_norm_stats");
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_norm_stats(const GroupNormParams p, const int64_t piece, const int64_t pieces, const bool wide) {
  constexpr int V = kVec<T>, kTurns = static_cast<int>(kGroupPiece) / (kThreads * V);
  DLOPS_SHARED(Moments<float>, scratch, [32]);
  const int64_t size = p.c / p.groups * p.hw;
  for (int64_t task = blockIdx.x; task < p.n * p.groups * pieces; task += gridDim.x) {
    const int64_t group = task / pieces, begin = task % pieces * piece;
    const int64_t end = begin + piece < size ? begin + piece : size;
    const T* x = static_cast<const T*>(p.x) + group * size;
    Moments<float> m{};
    for (int64_t i = begin + threadIdx.x * V; i < end; i += kGroupPiece) {
      uint4 held[kTurns];
#pragma unroll
      for (int t = 0; t < kTurns; t++)
        held[t] = load(x + i + t * kThreads * V, end - i - t * kThreads * V, wide);
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        float v[V];
        unpack<T>(held[t], v);
        if (i + t * kThreads * V < end) m.add(v, end - i - t * kThreads * V);
      }
    }
    m = block_reduce(m, scratch);
    float2* out = reinterpret_cast<float2*>(p.workspace);
    if (threadIdx.x == 0)
      out[(group / p.groups * pieces + task % pieces) * p.groups + group % p.groups] =
          make_float2(m.mean, m.m2);
  }
}

// channels_last: columns are channels, a piece is tile.piece pixels.
constexpr KernelInfo kGroupStatsLast = DLOPS_NORM_KERNEL(
    "group_norm", "fused", "32 x 16 bytes of channels, 128 pixels", "group_norm_stats_last");
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_norm_stats_last(const GroupNormParams p, const ColumnTile tile, const bool wide) {
  constexpr int V = kVec<T>, kTurns = 4;
  DLOPS_SHARED(float, scratch, [2 * V * kThreads]);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x),
            x = static_cast<int>(blockDim.x);
  for (int64_t task = blockIdx.x; task < p.n * tile.pieces * tile.tiles; task += gridDim.x) {
    const ColumnTask k = column_task(tile, task, p.hw, V);
    const T* in = static_cast<const T*>(p.x) + k.sample * p.hw * p.c + k.column;
    float mean[V] = {}, m2[V] = {}, count = 0;
    for (int64_t row = k.begin + threadIdx.y; row < k.end; row += kTurns * blockDim.y) {
      uint4 held[kTurns];
#pragma unroll
      for (int t = 0; t < kTurns; t++)
        if (row + t * blockDim.y < k.end)
          held[t] = load(in + (row + t * blockDim.y) * p.c, p.c - k.column, wide);
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        if (row + t * blockDim.y >= k.end) continue;
        float v[V];
        unpack<T>(held[t], v);
        count += 1;
        const float share = 1.f / count;  // Welford 1962, one column at a time
#pragma unroll
        for (int j = 0; j < V; j++) {
          const float delta = v[j] - mean[j];
          mean[j] += delta * share;
          m2[j] += delta * (v[j] - mean[j]);
        }
      }
    }
    __syncthreads();  // the last use of scratch is over
#pragma unroll
    for (int j = 0; j < V; j++) {
      scratch[j * kThreads + thread] = mean[j];
      scratch[(V + j) * kThreads + thread] = m2[j];
    }
    __syncthreads();
    float2* out = reinterpret_cast<float2*>(p.workspace) + (k.sample * tile.pieces + k.piece) * p.c;
    for (int i = thread; i < x * V; i += kThreads) {
      Moments<float> m{};
      for (int y = 0; y < static_cast<int>(blockDim.y); y++) {
        const int64_t rows =
            (k.end - k.begin - y + blockDim.y - 1) / blockDim.y;  // that thread y had; 0 if negative
        const int at = i / x * kThreads + y * x + i % x;
        m.merge({rows > 0 ? static_cast<float>(rows) : 0.f, scratch[at], scratch[V * kThreads + at]});
      }
      const int64_t column = (task % tile.tiles * x + i % x) * V + i / x;
      if (column < p.c) out[column] = make_float2(m.mean, m.m2);
    }
  }
}

// One warp per group merges its partials: `width` columns of each piece. R: float.
constexpr KernelInfo kGroupFinish =
    DLOPS_NORM_KERNEL("group_norm", "fused", "1 group per warp", "group_norm_finish");
template <class R>
__global__ void __launch_bounds__(kThreads)
    group_norm_finish(const GroupNormParams p, const int64_t width, const int64_t total, const int64_t piece,
                      const int64_t pieces) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2* in = reinterpret_cast<const float2*>(p.workspace);
  for (int64_t group = flat_thread() / 32; group < p.n * p.groups; group += flat_threads() / 32) {
    const int64_t sample = group / p.groups, first = group % p.groups * width;
    Moments<R> m{};
    for (int64_t i = lane; i < pieces * width; i += 32) {
      const int64_t s = i / width, rest = total - s * piece;
      const float2 part = in[(sample * pieces + s) * p.groups * width + first + i % width];
      m.merge({static_cast<R>(rest < piece ? rest : piece), part.x, part.y});
    }
    m = warp_reduce(m);
    if (lane == 0) p.mean[group] = m.mean, p.rstd[group] = rstd_of(m.m2, m.count, p.eps);
  }
}

// The map, NCHW: a row is one plane [HW] of one channel.
constexpr int kMapUnroll = 2;
constexpr KernelInfo kGroupMap = DLOPS_NORM_KERNEL("group_norm", "fused", "8192 elements", "group_norm_map");
template <class T>
__global__ void __launch_bounds__(kRowThreads) group_norm_map(const GroupNormParams p, const bool wide) {
  constexpr int V = kVec<T>;
  const int64_t chunks = (p.hw + V - 1) / V;
  for (int64_t plane = first_row(); plane < p.n * p.c; plane += row_step()) {
    const Affine k = affine_of<T>(p, plane / p.c, plane % p.c);
    const int64_t base = plane * p.hw;
    for (int64_t chunk = first_chunk(kMapUnroll); chunk < chunks; chunk += chunk_step(kMapUnroll)) {
      uint4 held[kMapUnroll];
#pragma unroll
      for (int u = 0; u < kMapUnroll; u++) {
        const int64_t i = (chunk + u * blockDim.x) * V;
        held[u] = load(static_cast<const T*>(p.x) + base + i, p.hw - i, wide);
      }
#pragma unroll
      for (int u = 0; u < kMapUnroll; u++) {
        const int64_t i = (chunk + u * blockDim.x) * V;
        float v[V];
        unpack<T>(held[u], v);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = activate<T>(k.z(v[j]), p.silu);
        store(static_cast<T*>(p.y) + base + i, pack<T>(v), p.hw - i, wide);
      }
    }
  }
}

// The map, channels_last: a thread keeps the constants of its chunk of channels.
constexpr KernelInfo kGroupMapLast =
    DLOPS_NORM_KERNEL("group_norm", "fused", "32 x 16 bytes of channels, 128 pixels", "group_norm_map_last");
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    group_norm_map_last(const GroupNormParams p, const ColumnTile tile, const bool wide) {
  constexpr int V = kVec<T>, kTurns = 2;
  for (int64_t task = blockIdx.x; task < p.n * tile.pieces * tile.tiles; task += gridDim.x) {
    const ColumnTask t = column_task(tile, task, p.hw, V);
    const int64_t base = t.sample * p.hw * p.c + t.column, left = p.c - t.column;
    Affine k[V];
#pragma unroll
    for (int j = 0; j < V; j++) k[j] = j < left ? affine_of<T>(p, t.sample, t.column + j) : Affine{};
    for (int64_t row = t.begin + threadIdx.y; row < t.end; row += kTurns * blockDim.y) {
      uint4 held[kTurns];
#pragma unroll
      for (int u = 0; u < kTurns; u++)
        if (row + u * blockDim.y < t.end)
          held[u] = load(static_cast<const T*>(p.x) + base + (row + u * blockDim.y) * p.c, left, wide);
#pragma unroll
      for (int u = 0; u < kTurns; u++) {
        if (row + u * blockDim.y >= t.end) continue;
        float v[V];
        unpack<T>(held[u], v);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = activate<T>(k[j].z(v[j]), p.silu);
        store(static_cast<T*>(p.y) + base + (row + u * blockDim.y) * p.c, pack<T>(v), left, wide);
      }
    }
  }
}

}  // namespace dlops::norm
