// The gradients of LayerNorm and RMSNorm: dx a row at a time, then those of weight and bias, which are sums over rows, in
// two stages without atomics, so that every run gives the same bits.
#pragma once
#include "rows.cuh"

namespace dlops::norm {

struct RowGradient {
  float mean, rstd;
  DLOPS_DEVICE float xhat(float s) const { return (s - mean) * rstd; }
};
DLOPS_DEVICE RowGradient row_gradient(const RowNormBackwardParams& p, int64_t row) {
  return {p.rms ? 0.f : p.mean[row], p.rstd[row]};
}

// ---- naive: a thread per row, then a thread per column; so many terms one after the other want float64 ----

constexpr KernelInfo kRowsBackwardNaive =
    DLOPS_NORM_KERNEL("row_norm_backward", "naive", "256 rows", "row_norm_backward_naive");
template <class T>
__global__ void __launch_bounds__(kThreads) row_norm_backward_naive(const RowNormBackwardParams p) {
  const T *dy = static_cast<const T*>(p.dy), *s = static_cast<const T*>(p.s),
          *dsum = static_cast<const T*>(p.dsum);
  const Param<T> weight{p.weight, p.param_dtype};
  const double size = static_cast<double>(p.d);
  for (int64_t row = flat_thread(); p.dx && row < p.rows; row += flat_threads()) {
    const RowGradient r = row_gradient(p, row);
    double g = 0, gx = 0;
    for (int64_t i = row * p.d; i < (row + 1) * p.d; i++) {
      const float gi = static_cast<float>(dy[i]) * weight.at(i - row * p.d, 1.f);
      g += gi;
      gx += gi * r.xhat(static_cast<float>(s[i]));
    }
    const float mean_g = p.rms ? 0.f : static_cast<float>(g / size), mean_gx = static_cast<float>(gx / size);
    for (int64_t i = row * p.d; i < (row + 1) * p.d; i++) {
      const float gi = static_cast<float>(dy[i]) * weight.at(i - row * p.d, 1.f);
      const float dx = r.rstd * (gi - mean_g - r.xhat(static_cast<float>(s[i])) * mean_gx);
      static_cast<T*>(p.dx)[i] = static_cast<T>(dsum ? dx + static_cast<float>(dsum[i]) : dx);
    }
  }
  for (int64_t c = flat_thread(); (p.dweight || p.dbias) && c < p.d; c += flat_threads()) {
    double dweight = 0, dbias = 0;
    for (int64_t row = 0; row < p.rows; row++) {
      const int64_t i = row * p.d + c;
      dweight += static_cast<float>(dy[i]) * row_gradient(p, row).xhat(static_cast<float>(s[i]));
      dbias += static_cast<float>(dy[i]);
    }
    if (p.dweight) p.dweight[c] = static_cast<float>(dweight);
    if (p.dbias) p.dbias[c] = static_cast<float>(dbias);
  }
}

// ---- fused: dx. dy and s stay in registers between the two sums and the map. blockDim = (threads of a row, rows) ----

template <class T>
constexpr int kGradientHeld = 8 / kVec<T>;  // chunks of each of the two
constexpr KernelInfo kRowsBackward =
    DLOPS_NORM_KERNEL("row_norm_backward", "fused", "1 row per warp or block", "row_norm_dx");
template <class T>
__global__ void __launch_bounds__(kRowBlockThreads, 1)
    row_norm_dx(const RowNormBackwardParams p, const bool wide) {
  constexpr int V = kVec<T>;
  DLOPS_SHARED(Sums<2>, scratch, [32]);
  const Param<T> weight{p.weight, p.param_dtype};
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * V, turn = static_cast<int64_t>(blockDim.x) * V;
  const float size = static_cast<float>(p.d);
  for (int64_t row = flat_row(); row < p.rows; row += flat_rows()) {
    const RowGradient r = row_gradient(p, row);
    const int64_t base = row * p.d;
    auto fetch = [&](const void* from, int64_t i) {
      return load(static_cast<const T*>(from) + base + i, p.d - i, wide);
    };
    Sums<2> sums{};  // of g and of g xhat
    auto add = [&](const uint4& dy, const uint4& s, int64_t i) {
      float g[V], x[V], w[V];
      unpack<T>(dy, g);
      unpack<T>(s, x);
      weight.chunk(i, p.d - i, wide, 1.f, w);
#pragma unroll
      for (int j = 0; j < V; j++) {
        g[j] *= w[j];  // dy reads as 0 where there is nothing
        sums.v[0] += g[j];
        sums.v[1] += g[j] * r.xhat(x[j]);
      }
    };
    uint4 dy[kGradientHeld<T>], s[kGradientHeld<T>];
#pragma unroll
    for (int h = 0; h < kGradientHeld<T>; h++) {
      dy[h] = fetch(p.dy, mine + h * turn);
      s[h] = fetch(p.s, mine + h * turn);
    }
#pragma unroll
    for (int h = 0; h < kGradientHeld<T>; h++) add(dy[h], s[h], mine + h * turn);
    for (int64_t i = mine + kGradientHeld<T> * turn; i < p.d; i += turn)
      add(fetch(p.dy, i), fetch(p.s, i), i);
    sums = row_reduce(sums, scratch);
    const float mean_g = p.rms ? 0.f : sums.v[0] / size, mean_gx = sums.v[1] / size;
    auto finish = [&](const uint4& dy_chunk, const uint4& s_chunk, int64_t i) {
      if (i >= p.d) return;
      float g[V], x[V], w[V], more[V] = {};
      unpack<T>(dy_chunk, g);
      unpack<T>(s_chunk, x);
      weight.chunk(i, p.d - i, wide, 1.f, w);
      if (p.dsum) unpack<T>(fetch(p.dsum, i), more);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] = r.rstd * (g[j] * w[j] - mean_g - r.xhat(x[j]) * mean_gx) + more[j];
      store(static_cast<T*>(p.dx) + base + i, pack<T>(g), p.d - i, wide);
    };
#pragma unroll
    for (int h = 0; h < kGradientHeld<T>; h++) finish(dy[h], s[h], mine + h * turn);
    for (int64_t i = mine + kGradientHeld<T> * turn; i < p.d; i += turn)
      finish(fetch(p.dy, i), fetch(p.s, i), i);
  }
}

// ---- fused: dweight and dbias, first stage: the sums of a piece of rows, [pieces, d] pairs in the workspace ----

constexpr KernelInfo kRowsColumns =
    DLOPS_NORM_KERNEL("row_norm_backward", "fused", "32 x 16 bytes of columns, 128 rows", "row_norm_columns");
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_norm_columns(const RowNormBackwardParams p, const ColumnTile tile, const bool wide) {
  constexpr int V = kVec<T>, kTurns = 2;
  DLOPS_SHARED(float, scratch, [2 * V * kThreads]);
  for (int64_t task = blockIdx.x; task < tile.pieces * tile.tiles; task += gridDim.x) {
    const ColumnTask k = column_task(tile, task, p.rows, V);
    const int64_t left = p.d - k.column;
    float a[V] = {}, b[V] = {};
    for (int64_t row = k.begin + threadIdx.y; row < k.end; row += kTurns * blockDim.y) {
      uint4 dy[kTurns], s[kTurns];
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        if (row + t * blockDim.y >= k.end) continue;
        const int64_t i = (row + t * blockDim.y) * p.d + k.column;
        dy[t] = load(static_cast<const T*>(p.dy) + i, left, wide);
        s[t] = load(static_cast<const T*>(p.s) + i, left, wide);
      }
#pragma unroll
      for (int t = 0; t < kTurns; t++) {
        if (row + t * blockDim.y >= k.end) continue;
        const RowGradient r = row_gradient(p, row + t * blockDim.y);
        float g[V], x[V];
        unpack<T>(dy[t], g);
        unpack<T>(s[t], x);
#pragma unroll
        for (int j = 0; j < V; j++) {
          a[j] += g[j] * r.xhat(x[j]);
          b[j] += g[j];
        }
      }
    }
    const int64_t first = task % tile.tiles * tile.x * V;
    float2* out = reinterpret_cast<float2*>(p.workspace) + k.piece * p.d + first;
    add_columns(a, b, scratch, [&](int column, float sum_a, float sum_b) {
      if (first + column < p.d) out[column] = make_float2(sum_a, sum_b);
    });
  }
}

}  // namespace dlops::norm
