// The warp's part of attention on tensor cores: a warp has R x 16 rows, S = Q K^T over N keys of a tile, the online softmax
// (Milakov and Gimelshein 2018; Dao 2023, algorithm 1), O += P V. `tiled` and `pipelined` differ in how tiles come to shared
// memory and lie there (L), not in this.
//
// Accumulators, of mma_m16n8k16: element e of lane l is row l / 4 + 8 (e / 2), column 2 (l % 4) + e % 2 of 16 x 8.
#pragma once
#include "../cuda/fast_math.h"
#include "../cuda/mma.h"
#include "../cuda/vec.h"
#include "careful.cuh"

namespace dlops::attention {

DLOPS_DEVICE int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

// How a tile [rows][D] of 16-bit elements lies in shared memory: element row * kRow + column(row, c) begins chunk c (of 8
// elements) of a row; column repeats after 16 rows. ldmatrix reads a chunk of 8 rows at once; those must lie in 8 different
// groups of 4 banks.
template <int D>
struct Padded {  // a row is one group longer than a multiple of 4 groups: 8 rows begin in 8 groups
  static constexpr int kRow = D + 8;
  static DLOPS_DEVICE int column(int, int chunk) { return chunk * 8; }
};
template <int D>
struct
    Swizzled {  // rows of 8 groups: chunks move by the row; of 4 (or 12) groups: two rows share a line of banks
  static constexpr int kRow = D;
  static DLOPS_DEVICE int column(int row, int chunk) {
    return (D % 64 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3)) * 8;
  }
};
template <class L>
DLOPS_DEVICE int place(int row, int chunk) {
  return row * L::kRow + L::column(row, chunk);
}

// d[16, 16] += a b, the two halves of b side by side in f.
template <class T>
DLOPS_DEVICE void multiply(float (&low)[4], float (&high)[4], const uint32_t (&a)[4],
                           const uint32_t (&f)[4]) {
  const uint32_t first[2] = {f[0], f[1]}, second[2] = {f[2], f[3]};
  ptx::mma_m16n8k16<T>(low, a, first);
  ptx::mma_m16n8k16<T>(high, a, second);
}

// s[R * 16, N] = q k^T. q: the tile's address in shared memory, `row` the warp's first row there; k: [N][D].
template <class T, int D, class L, int R, int N>
DLOPS_DEVICE void query_keys(float (&s)[R][N / 8][4], uint32_t q, int row, uint32_t k) {
  const int lane = D < 128 ? lane_of_warp() : opaque(lane_of_warp()), key = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[r][n][e] = 0.f;
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    const uint32_t q_at = q + 2 * place<L>(row + lane % 16, kk * 2 + lane / 16);
    const uint32_t k_at = k + 2 * place<L>(key, kk * 2 + lane / 8 % 2);
    uint32_t a[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) ptx::ldmatrix(a[r], q_at + 2 * 16 * L::kRow * r);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t f[4];
      ptx::ldmatrix(f, k_at + 2 * 16 * L::kRow * n);
#pragma unroll
      for (int r = 0; r < R; r++) multiply<T>(s[r][2 * n], s[r][2 * n + 1], a[r], f);
    }
  }
}

// o[R * 16, D] += p v. The accumulators of two neighbouring 16 x 8 tiles are, packed, the fragment of a 16 x 16 operand.
template <class T, int D, class L, int R, int N>
DLOPS_DEVICE void add_values(float (&o)[R][D / 8][4], const float (&p)[R][N / 8][4], uint32_t v) {
  const int lane = D < 128 ? lane_of_warp() : opaque(lane_of_warp());
  uint32_t a[N / 16][R][4];
#pragma unroll
  for (int kk = 0; kk < N / 16; kk++)
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int e = 0; e < 4; e++) a[kk][r][e] = pack_word<T>(p[r][2 * kk + e / 2] + e % 2 * 2);
#pragma unroll
  for (int n = 0; n < D / 16; n++) {
    const uint32_t v_at = v + 2 * place<L>(lane % 16, n * 2 + lane / 16);
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
      uint32_t f[4];
      ptx::ldmatrix_trans(f, v_at + 2 * 16 * L::kRow * kk);
#pragma unroll
      for (int r = 0; r < R; r++) multiply<T>(o[r][2 * n], o[r][2 * n + 1], a[kk][r], f);
    }
  }
}

// ---- scores ----

// The keys that any of a warp's rows sees, and those that all of them see.
struct WarpKeys {
  int begin, end, all_begin, all_end;

  DLOPS_DEVICE bool any(int from, int to) const { return from < end && begin < to; }
  DLOPS_DEVICE bool all(int from, int to) const { return all_begin <= from && to <= all_end; }
};
DLOPS_DEVICE WarpKeys keys_of_warp(const AttentionProblem& p, const Head& h, int row, int rows) {
  if (row >= h.rows) return {0, 0, 0, 0};
  const Range first = keys_of_row(p, h.sequence, row);
  const Range last = keys_of_row(p, h.sequence, min(row + rows, h.rows) - 1);
  return {static_cast<int>(first.begin), static_cast<int>(last.end), static_cast<int>(last.begin),
          static_cast<int>(first.end)};
}

// Hides what rows [row, row + R * 16) of the lanes do not see of the keys [n0, n0 + N).
template <int R, int N>
DLOPS_DEVICE void hide(float (&s)[R][N / 8][4], const AttentionProblem& p, const Head& h, int row, int n0) {
  const int lane = opaque(lane_of_warp());
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const Visible see = visible_from(p, h.keys, h.shift, row + r * 16 + i * 8 + lane / 4, n0);
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int column = n * 8 + lane % 4 * 2 + e;
          if (column < see.begin || column >= see.end) s[r][n][2 * i + e] = kNegativeInfinity;
        }
    }
}

// Dot products to scores with softcap, ALiBi and mask.
template <int R, int N>
DLOPS_DEVICE void adjust(float (&s)[R][N / 8][4], const AttentionProblem& p, const Head& h, int row, int n0) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int i = row + r * 16 + e / 2 * 8 + lane / 4, j = n0 + n * 8 + lane % 4 * 2 + e % 2;
        s[r][n][e] = i < h.rows && j < h.keys ? score_of(p, h, s[r][n][e], i, j).value : kNegativeInfinity;
      }
}

// Zeroes what dropout takes.
template <int R, int N>
DLOPS_DEVICE void drop(float (&s)[R][N / 8][4], const Dropout& dropout, int row, int n0) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
      const uint32_t kept = dropout.kept_fragment(row + r * 16, n0 + n * 8);
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (!(kept >> e & 1)) s[r][n][e] = 0.f;
    }
}

// ---- the online softmax ----

// Of rows lane / 4 + 8 i of each 16: `base` is what was subtracted in the exponent, a lower bound of the largest score so
// far by at most kSlack / log2(e); `sum` is this lane's share of the sum.
template <int R>
struct RowState {
  float base[R][2], sum[R][2];

  DLOPS_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < R; r++) base[r][0] = base[r][1] = kNegativeInfinity, sum[r][0] = sum[r][1] = 0.f;
  }
};

// A base that follows the largest score only when it lags by 2^8 changes a few times per row, and where it does not, O
// stays as it is. The probabilities are then at most 2^8: float16 holds them, and the relative error is the same.
constexpr float kSlack = 8.f;

DLOPS_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWarp, x, 2));
}

// s becomes exp(unit (s - base)); c = unit log2(e) > 0, slack = kSlack / c.
template <int D, int R, int N>
DLOPS_DEVICE void online_softmax(float (&s)[R][N / 8][4], RowState<R>& state, float (&o)[R][D / 8][4],
                                 float c, float slack) {
#pragma unroll
  for (int r = 0; r < R; r++) {
    float correction[2], offset[2];
    bool changed = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float most = fmaxf(s[r][0][2 * i], s[r][0][2 * i + 1]);
#pragma unroll
      for (int n = 1; n < N / 8; n++) most = fmaxf(most, fmaxf(s[r][n][2 * i], s[r][n][2 * i + 1]));
      most = quad_max(most);
      const float old = state.base[r][i];
      const bool moves = most > old + slack;
      correction[i] = moves ? exp2_fast((old - most) * c) : 1.f;
      state.base[r][i] = moves ? most : old;
      state.sum[r][i] *= correction[i];
      offset[i] = state.base[r][i] == kNegativeInfinity ? 0.f : state.base[r][i] * c;
      changed |= moves;
    }
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[r][n][e] = exp2_fast(fmaf(s[r][n][e], c, -offset[e / 2]));
        state.sum[r][e / 2] += s[r][n][e];
      }
    if (__any_sync(kWarp, changed)) {
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[r][n][e] *= correction[e / 2];
    }
  }
}

// The warp's rows, row .. row + R * 16 of the sequence, divided by their sums, to `tile` (its rows from tile_row on: nobody
// else's) and from there to out, 16 bytes at a time where `wide`; lse.
template <class T, int D, class L, int R>
DLOPS_DEVICE void finish(float (&o)[R][D / 8][4], const RowState<R>& state, float unit,
                         const AttentionForwardParams& p, const Head& h, int row, T* tile, int tile_row,
                         bool wide) {
  const int lane = lane_of_warp();
  const float keep = p.dropout_p > 0 ? 1.f / (1.f - p.dropout_p) : 1.f;
  float lse[R][2];
  bool again[R][2];
  __syncwarp();  // all lanes have read their rows of the tile
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = state.sum[r][i];
      sum += __shfl_xor_sync(kWarp, sum, 1);
      sum += __shfl_xor_sync(kWarp, sum, 2);
      const float base = state.base[r][i] * unit;
      const bool empty = state.base[r][i] == kNegativeInfinity && sum == 0.f;
      const float sink = p.sinks && !empty ? exp2f((p.sinks[h.head] - base) * kLog2e) : 0.f;
      const float scale = empty ? 0.f : keep / (sum + sink);
      const int local = r * 16 + i * 8 + lane / 4;
      bool good = true;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const float pair[2] = {o[r][n][2 * i] * scale, o[r][n][2 * i + 1] * scale};
        good = good && finite(pair[0]) && finite(pair[1]);
        *reinterpret_cast<uint32_t*>(tile + place<L>(tile_row + local, n) + lane % 4 * 2) =
            pack_word<T>(pair);
      }
      lse[r][i] = empty ? kNegativeInfinity : base + logf(sum);
      if (lane % 4 == 0 && row + local < h.rows) *lse_of(p.lse, h, row + local) = lse[r][i];
      again[r][i] = !good && row + local < h.rows && finite(lse[r][i]);
    }
  __syncwarp();  // all lanes have written theirs
  const int dv = static_cast<int>(p.dv), chunks = (dv + 7) / 8;
  for (int e = lane; e < R * 16 * chunks; e += 32) {
    const int local = e / chunks, chunk = e % chunks;
    if (row + local < h.rows)
      store(row_of<T>(p.out, h, row + local) + chunk * 8,
            *reinterpret_cast<const uint4*>(tile + place<L>(tile_row + local, chunk)), dv - chunk * 8, wide);
  }
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      bool any = again[r][i];  // of the row's four lanes
      any |= __shfl_xor_sync(kWarp, any, 1);
      any |= __shfl_xor_sync(kWarp, any, 2);
      careful_rows(any && lane % 4 == 0, p, h, row + r * 16 + i * 8 + lane / 4, lse[r][i]);
    }
}

}  // namespace dlops::attention
