// The rung `tiled`: the products on tensor cores (mma.sync, FlashAttention's tiles). Tiles come to shared memory by ordinary
// loads and stores while nobody computes, and rows are padded by 16 bytes against bank conflicts: what `pipelined` adds is
// that loading costs no time, and that no shared memory is wasted.
#pragma once
#include "../catalogue.h"
#include "fragment.cuh"
#include "tasks.cuh"

namespace dlops::attention {

template <int D>
struct TiledTile {
  static constexpr int kRows = 64, kThreads = 128;  // a warp has 16 rows
  static constexpr int N = D <= 128 ? 64 : 32;      // keys
  static constexpr int kShared = (kRows + 2 * N) * Padded<D>::kRow * 2;
};

// Rows [0, rows) of d elements, of which `valid` exist, to a tile [rows][D]; the rest of the tile becomes 0.
template <class T, int D, int rows>
DLOPS_DEVICE void fill_tile(T* tile, const T* from, int64_t stride, int valid, int d, bool wide) {
  constexpr int kChunks = D / 8;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < rows * kChunks; i += TiledTile<D>::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    *reinterpret_cast<uint4*>(tile + place<Padded<D>>(row, chunk)) =
        load(from + row * stride + chunk * 8, row < valid ? d - chunk * 8 : 0, wide);
  }
}

constexpr KernelInfo kTiled =
    DLOPS_CUDA_KERNEL("attention", "attention", "tiled", "sm_80 sm_90a", "f16 bf16",
                      "64 rows x 64 keys (D 128)", "attention_tiled", TiledTile<128>::kShared);
template <class T, int D>
__global__ void __launch_bounds__(TiledTile<D>::kThreads)
    attention_tiled(const __grid_constant__ AttentionForwardParams p, const Tasks tasks, const bool wide,
                    const bool wide_out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using L = Padded<D>;
  constexpr int kRows = TiledTile<D>::kRows, N = TiledTile<D>::N;
  DLOPS_DYNAMIC_SHARED(T, shared, 16);
  T* q_tile = shared;                    // [kRows][D + 8]
  T* k_tile = q_tile + kRows * L::kRow;  // [N][D + 8]
  T* v_tile = k_tile + N * L::kRow;      // [N][D + 8]
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv);

  const Tasks::Task t = tasks.at(blockIdx.x, p.heads);
  const Head h = head_of(p, t.batch, t.head);
  const int row0 = static_cast<int>(t.tile) * kRows;
  if (row0 >= h.rows) return;  // packed: this sequence is shorter
  const Range seen = keys_of_rows(p, h.sequence, {row0, min(row0 + kRows, h.rows)});
  const int first = static_cast<int>(seen.begin) / N * N, end = static_cast<int>(seen.end);
  fill_tile<T, D, kRows>(q_tile, row_of<const T>(p.q, h, row0), p.q.row, h.rows - row0, d, wide);

  float o[1][D / 8][4] = {};
  RowState<1> state;
  state.clear();
  for (int n0 = first; n0 < end; n0 += N) {
    __syncthreads();  // the last tile is done with
    fill_tile<T, D, N>(k_tile, key_of<const T>(p.k, h, n0), p.k.row, h.keys - n0, d, wide);
    fill_tile<T, D, N>(v_tile, key_of<const T>(p.v, h, n0), p.v.row, h.keys - n0, dv, wide);
    __syncthreads();  // the tile is there
    float s[1][N / 8][4];
    query_keys<T, D, L, 1, N>(s, ptx::shared_address(q_tile), warp_row, ptx::shared_address(k_tile));
    adjust<1, N>(s, p, h, row0 + warp_row, n0);
    hide<1, N>(s, p, h, row0 + warp_row, n0);
    online_softmax<D, 1, N>(s, state, o, kLog2e, kSlack / kLog2e);
    if (p.dropout_p > 0) drop<1, N>(s, Dropout(p, h), row0 + warp_row, n0);
    add_values<T, D, L, 1, N>(o, s, ptx::shared_address(v_tile));
  }
  if (first >= end) __syncthreads();  // nobody sees a key; Q is there
  finish<T, D, L, 1>(o, state, 1.f, p, h, row0 + warp_row, q_tile, warp_row, wide_out);
#endif
}

}  // namespace dlops::attention
