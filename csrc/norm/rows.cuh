// LayerNorm and RMSNorm: one row, [d], per warp where d is small and per block otherwise, read once.
#pragma once
#include "cuda.cuh"

namespace dlops::norm {

// Chunks per thread that stay in registers, 16 elements; longer rows are read again.
template <class T>
constexpr int kRowHeld = 16 / kVec<T>;
constexpr int kRowBlockThreads = 512;  // at most: more would leave too few registers

// Threads for a row: a warp, and several rows per block, or a block with `held` chunks per thread where that many threads
// allow it.
struct RowBlock { dim3 grid, block; };
inline RowBlock row_block(int64_t rows, int64_t chunks, int held) {
  int threads = 32;
  while (threads < kRowBlockThreads && static_cast<int64_t>(threads) * held < chunks) threads *= 2;
  const int together = threads == 32 ? kThreads / 32 : 1;
  return {task_grid(ceil_div(rows, together)), dim3(threads, together)};
}

// The result of a row's threads: of the warp, or of the block.
template <class A>
DLOPS_DEVICE A row_reduce(const A& a, A* scratch) {
  return blockDim.x > 32 ? block_reduce(a, scratch) : warp_reduce(a);
}

// The moments of a row about its mean, or for RMSNorm about 0 (`mean` 0, `m2` the sum of squares).
struct RowMoments {
  Moments<float> m;
  DLOPS_DEVICE void merge(const RowMoments& o) { m.merge(o.m); }
  DLOPS_DEVICE RowMoments down(int lanes) const { return {m.down(lanes)}; }
  DLOPS_DEVICE RowMoments from_first() const { return {m.from_first()}; }
  template <int V>
  DLOPS_DEVICE void add(const float (&v)[V], int64_t n, bool rms) {
    if (!rms) return m.add(v, n);
    float squares = 0;
#pragma unroll
    for (int j = 0; j < V; j++) squares += v[j] * v[j];  // what does not exist reads as 0
    m.merge({static_cast<float>(n < V ? n : V), 0.f, squares});
  }
};

// ---- naive: one block per row, one element at a time, the textbook's two passes and a third to write. The second pass
// also sums the deviations: their mean is what rounding the mean lost (Chan, Golub and LeVeque 1983, "corrected two-pass") ----

constexpr KernelInfo kRowsNaive = DLOPS_NORM_KERNEL("row_norm", "naive", "1 row", "row_norm_naive");
template <class T>
__global__ void __launch_bounds__(kThreads) row_norm_naive(const RowNormParams p) {
  DLOPS_SHARED(Sums<2>, scratch, [32]);
  const Param<T> weight{p.weight, p.param_dtype}, bias{p.bias, p.param_dtype};
  const float size = static_cast<float>(p.d);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(p.x) + row * p.d;
    const T* residual = static_cast<const T*>(p.residual) + (p.residual ? row * p.d : 0);
    T* sum = static_cast<T*>(p.sum) + (p.sum ? row * p.d : 0);
    auto at = [&](int64_t i) {
      const float v = static_cast<float>(x[i]);
      return residual ? static_cast<float>(static_cast<T>(v + static_cast<float>(residual[i]))) : v;
    };
    Sums<2> total{}, about{};  // about the mean: deviations, their squares
    for (int64_t i = threadIdx.x; i < p.d; i += kThreads) total.v[0] += at(i);
    const float mean = p.rms ? 0.f : block_reduce(total, scratch).v[0] / size;
    for (int64_t i = threadIdx.x; i < p.d; i += kThreads) {
      const float deviation = at(i) - mean;
      about.v[0] += deviation;
      about.v[1] += deviation * deviation;
    }
    about = block_reduce(about, scratch);
    const float lost = p.rms ? 0.f : about.v[0] / size;
    const float rstd = rstd_of(about.v[1] - size * lost * lost, size, p.eps);
    for (int64_t i = threadIdx.x; i < p.d; i += kThreads) {
      const float s = at(i);
      if (sum) sum[i] = static_cast<T>(s);
      static_cast<T*>(p.y)[row * p.d + i] =
          static_cast<T>((s - mean - lost) * rstd * weight.at(i, 1.f) + bias.at(i, 0.f));
    }
    if (threadIdx.x == 0) {
      if (!p.rms) p.mean[row] = mean + lost;
      p.rstd[row] = rstd;
    }
  }
}

// ---- fused: the row stays in registers between the statistics and the map. blockDim = (threads of a row, rows) ----

constexpr KernelInfo kRows =
    DLOPS_NORM_KERNEL("row_norm", "fused", "1 row per warp or block", "row_norm_fused");
template <class T>
__global__ void __launch_bounds__(kRowBlockThreads, 1)
    row_norm_fused(const RowNormParams p, const bool wide) {
  constexpr int V = kVec<T>;
  DLOPS_SHARED(RowMoments, scratch, [32]);
  const Param<T> weight{p.weight, p.param_dtype}, bias{p.bias, p.param_dtype};
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * V, turn = static_cast<int64_t>(blockDim.x) * V;
  // A whole warp has one row, and a block as one has the same number of turns: all reach the reductions together.
  for (int64_t row = flat_row(); row < p.rows; row += flat_rows()) {
    const int64_t base = row * p.d;
    auto fetch = [&](int64_t i) {
      uint4 chunk = load(static_cast<const T*>(p.x) + base + i, p.d - i, wide);
      if (p.residual) {
        float s[V], r[V];
        unpack<T>(chunk, s);
        unpack<T>(load(static_cast<const T*>(p.residual) + base + i, p.d - i, wide), r);
#pragma unroll
        for (int j = 0; j < V; j++) s[j] += r[j];
        chunk = pack<T>(s);  // rounded: what is normalised is what is handed on
      }
      return chunk;
    };
    uint4 held[kRowHeld<T>];
    RowMoments m{};
    float v[V], w[V], b[V];
#pragma unroll
    for (int h = 0; h < kRowHeld<T>; h++) held[h] = fetch(mine + h * turn);
#pragma unroll
    for (int h = 0; h < kRowHeld<T>; h++) {
      unpack<T>(held[h], v);
      if (mine + h * turn < p.d) m.add(v, p.d - mine - h * turn, p.rms);
    }
    for (int64_t i = mine + kRowHeld<T> * turn; i < p.d; i += turn) {
      unpack<T>(fetch(i), v);
      m.add(v, p.d - i, p.rms);
    }
    m = row_reduce(m, scratch);
    const float mean = m.m.mean, rstd = rstd_of(m.m.m2, m.m.count, p.eps);
    SIMT_TRACE("mean", mean);
    SIMT_TRACE("rstd", rstd);
    if (threadIdx.x == 0) {
      if (!p.rms) p.mean[row] = mean;
      p.rstd[row] = rstd;
    }
    auto finish = [&](int64_t i, const uint4& chunk) {
      if (i >= p.d) return;
      if (p.sum) store(static_cast<T*>(p.sum) + base + i, chunk, p.d - i, wide);
      unpack<T>(chunk, v);
      weight.chunk(i, p.d - i, wide, 1.f, w);
      bias.chunk(i, p.d - i, wide, 0.f, b);
#pragma unroll
      for (int j = 0; j < V; j++) v[j] = (v[j] - mean) * rstd * w[j] + b[j];
      store(static_cast<T*>(p.y) + base + i, pack<T>(v), p.d - i, wide);
    };
#pragma unroll
    for (int h = 0; h < kRowHeld<T>; h++) finish(mine + h * turn, held[h]);
    for (int64_t i = mine + kRowHeld<T> * turn; i < p.d; i += turn) finish(i, fetch(i));
  }
}

}  // namespace dlops::norm
