// The rung `pipelined`: tensor cores fed by a pipeline (Dao 2023, FlashAttention-2; Ampere and later). While a tile of keys
// and values is worked on, cp.async brings the next; tiles are swizzled, so that ldmatrix and the writes meet no bank
// conflict; tiles that nobody sees are not visited, and those that everybody sees are not masked.
#pragma once
#include "../catalogue.h"
#include "fragment.cuh"
#include "tasks.cuh"

namespace dlops::attention {

// A block has kWarps warps of R x 16 rows and works on N keys at a time. R = 2 reads each key and value from shared memory
// half as often; where O takes too many registers for it, twice the warps keep as many rows per block: what is read
// from L2 depends on those. Shared memory holds Q and two stages of K and V: 96 KB at most (99 on the smallest GPUs).
template <int D, bool extras>
struct PipelinedTile {
  static constexpr int R = D <= 128 && !extras ? 2 : 1;
  static constexpr int N = D <= 64 ? 64 : 32;
  static constexpr int kWarps = R == 2 || D > 192 ? 4 : 8;
  static constexpr int kThreads = kWarps * 32, kRows = kWarps * R * 16;
  static constexpr int kShared = (kRows + 4 * N) * D * 2;  // bytes
};

// Rows [0, rows) of d elements, of which `valid` exist, to a tile [rows][D]; the rest of the tile becomes 0.
template <class T, int D, int rows, int threads>
DLOPS_DEVICE void load_tile(T* tile, const T* from, int64_t stride, int valid, int d, bool wide) {
  constexpr int kChunks = D / 8;
  const int thread = opaque(static_cast<int>(threadIdx.x));
  if (wide) {
#pragma unroll
    for (int i = thread; i < rows * kChunks; i += threads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool exists = row < valid && chunk * 8 < d;
      ptx::cp_async<16>(tile + place<Swizzled<D>>(row, chunk),
                        exists ? from + row * stride + chunk * 8 : from, exists);
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < rows * kChunks; i += threads) {
    const int row = i / kChunks, chunk = i % kChunks;
    *reinterpret_cast<uint4*>(tile + place<Swizzled<D>>(row, chunk)) =
        load(from + row * stride + chunk * 8, row < valid ? d - chunk * 8 : 0, false);
  }
}

constexpr KernelInfo kPipelined = DLOPS_CUDA_KERNEL(
    "attention", "attention", "pipelined", "sm_80 sm_90a", "f16 bf16", "128 rows x 32 keys (D 128)",
    "attention_pipelined", (PipelinedTile<128, false>::kShared));
// wide: q, k, v may be copied 16 bytes at a time; wide_out: so may out.
template <class T, int D, bool extras>
__global__ void __launch_bounds__(PipelinedTile<D, extras>::kThreads)
    attention_pipelined(const __grid_constant__ AttentionForwardParams p, const Tasks tasks, const bool wide,
                        const bool wide_out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Tile = PipelinedTile<D, extras>;
  using L = Swizzled<D>;
  constexpr int R = Tile::R, N = Tile::N, kRows = Tile::kRows, kThreads = Tile::kThreads;
  DLOPS_DYNAMIC_SHARED(T, shared, 128);
  T* q_tile = shared;              // [kRows][D]
  T* k_tile = q_tile + kRows * D;  // [2][N][D]
  T* v_tile = k_tile + 2 * N * D;  // [2][N][D]
  DLOPS_SHARED(Head, head, [1]);   // not in registers, of which there are none to spare
  const Head& h = head[0];
  const uint32_t q_at = ptx::shared_address(q_tile);
  const uint32_t k_at = ptx::shared_address(k_tile), v_at = ptx::shared_address(v_tile);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * R * 16;
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv);
  const float unit = extras ? 1.f : p.scale, c = unit * kLog2e;

  const Tasks::Task t = tasks.at(blockIdx.x, p.heads);
  if (threadIdx.x == 0) head[0] = head_of(p, t.batch, t.head);
  __syncthreads();  // the head is there
  const int row0 = static_cast<int>(t.tile) * kRows;
  if (row0 >= h.rows) return;  // packed: this sequence is shorter
  const Range seen = keys_of_rows(p, h.sequence, {row0, min(row0 + kRows, h.rows)});
  const int first = static_cast<int>(seen.begin) / N * N, end = static_cast<int>(seen.end);
  const WarpKeys mine = keys_of_warp(p, h, row0 + warp_row, R * 16);

  const T *keys = key_of<const T>(p.k, h, 0), *values = key_of<const T>(p.v, h, 0);
  auto load_keys = [&](int n0, int stage) {
    load_tile<T, D, N, kThreads>(k_tile + stage * N * D, keys + n0 * p.k.row, p.k.row, h.keys - n0, d, wide);
    load_tile<T, D, N, kThreads>(v_tile + stage * N * D, values + n0 * p.v.row, p.v.row, h.keys - n0, dv,
                                 wide);
  };
  load_tile<T, D, kRows, kThreads>(q_tile, row_of<const T>(p.q, h, row0), p.q.row, h.rows - row0, d, wide);
  if (first < end) load_keys(first, 0);
  ptx::cp_async_commit();

  float o[R][D / 8][4] = {};
  RowState<R> state;
  state.clear();
  int stage = 0;
  for (int n0 = first; n0 < end; n0 += N, stage ^= 1) {
    ptx::cp_async_wait<0>();  // this stage
    __syncthreads();          // all of it, and nobody reads the other one any more
    if (n0 + N < end) load_keys(n0 + N, stage ^ 1);
    ptx::cp_async_commit();
    if (!mine.any(n0, n0 + N)) continue;  // of the block's tiles, one that this warp does not see

    float s[R][N / 8][4];
    query_keys<T, D, L, R, N>(s, q_at, warp_row, k_at + stage * N * D * 2);
    if constexpr (extras) adjust<R, N>(s, p, h, row0 + warp_row, n0);
    if (!mine.all(n0, n0 + N)) hide<R, N>(s, p, h, row0 + warp_row, n0);
    online_softmax<D, R, N>(s, state, o, c, kSlack / c);
    if constexpr (extras)
      if (p.dropout_p > 0) drop<R, N>(s, Dropout(p, h), row0 + warp_row, n0);
    add_values<T, D, L, R, N>(o, s, v_at + stage * N * D * 2);
  }
  if (first >= end) {         // nobody sees a key, but Q is on its way to where the output passes
    ptx::cp_async_wait<0>();  // Q
    __syncthreads();          // all of Q
  }
  finish<T, D, L, R>(o, state, unit, p, h, row0 + warp_row, q_tile, warp_row, wide_out);
#endif
}

}  // namespace dlops::attention
