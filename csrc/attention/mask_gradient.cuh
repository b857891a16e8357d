// The gradient of an additive mask: ds, summed over the dimensions in which the mask is broadcast. A block owns 64 x 64
// elements of the mask (of a dimension of size 1: that one) and goes over everything that is broadcast onto them in a fixed
// order, with the products of backward_fp32.cuh. It only runs where the gradient is wanted.
#pragma once
#include "backward_fp32.cuh"

namespace dlops::attention {

struct MaskPlan {
  BackwardRows rows;
  int64_t batch, heads, q_len, k_len;  // of the mask: 1 where it is broadcast
  int64_t row_tiles, key_tiles;
  bool wide;
};

// Where a mask's dimension of size 1 stands for `size`: all of them; else the one.
DLOPS_DEVICE Range spread(int64_t i, int64_t masks, int64_t size) {
  return masks == 1 ? Range{0, size} : Range{i, i + 1};
}

constexpr KernelInfo kMaskGradient =
    DLOPS_ATTENTION_BACKWARD("fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "64 x 64 of the mask",
                             "attention_mask_gradient", fp32::kSharedBytes);
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    attention_mask_gradient(const __grid_constant__ AttentionBackwardParams p,
                            const __grid_constant__ MaskPlan plan) {
  using namespace fp32;
  static_assert(kThreads == fp32::kThreads);
  DLOPS_DYNAMIC_SHARED(float, shared, 16);
  float *s = shared, *dp = shared + kSquare, *work = shared + 2 * kSquare;
  const Reader reader{p.dtype, plan.wide};
  for (int64_t task = blockIdx.x; task < plan.batch * plan.heads * plan.row_tiles * plan.key_tiles;
       task += gridDim.x) {
    const int64_t key_tile = task % plan.key_tiles, row_tile = task / plan.key_tiles % plan.row_tiles,
                  bh = task / plan.key_tiles / plan.row_tiles;
    const Range batches = spread(bh / plan.heads, plan.batch, p.batch),
                heads = spread(bh % plan.heads, plan.heads, p.heads);
    const int64_t row0 = row_tile * kTile, key0 = key_tile * kTile;
    const Range row_range = plan.q_len == 1 ? Range{0, p.q_len} : Range{row0, lesser(row0 + kTile, p.q_len)};
    const Range key_range = plan.k_len == 1 ? Range{0, p.k_len} : Range{key0, lesser(key0 + kTile, p.k_len)};
    float sum[4][4] = {};
    for (int64_t b = batches.begin; b < batches.end; b++)
      for (int64_t h = heads.begin; h < heads.end; h++) {
        const Head head = head_of(p, b, h);
        const Dropout dropout(p, head);
        for (int64_t i0 = row_range.begin; i0 < row_range.end; i0 += kTile)
          for (int64_t j0 = key_range.begin; j0 < key_range.end; j0 += kTile) {
            const Sight sight = sight_of<Own::rows>(p, head.sequence, i0, kTile);
            if (!sight.any(static_cast<int>(j0), static_cast<int>(j0) + kTile)) continue;
            const Sides rows = rows_from(p, head, static_cast<int>(i0)),
                        keys = keys_from(p, head, static_cast<int>(j0));
            dot_products(s, rows.first, keys.first, reader, work);
            dot_products(dp, rows.second, keys.second, reader, work);
            for (int a = 0; a < 4; a++) {
              const int i = static_cast<int>(i0) + 4 * thread_y() + a;
              const Range seen = i < head.sequence.q_len ? keys_of_row(p, head.sequence, i) : Range{0, 0};
#pragma unroll 1
              for (int c = 0; c < 4; c++) {
                const int j = static_cast<int>(j0) + thread_x() + 16 * c, at = result_at(a, c);
                dp[at] = seen.begin <= j && j < seen.end
                             ? gradient_of(p, head, dropout, plan.rows, s[at], dp[at], i, j).ds
                             : 0.f;
              }
            }
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
              for (int c = 0; c < 4; c++) sum[a][c] += dp[result_at(a, c)];
          }
      }
    // A tile [keys][rows] in shared memory; then a broadcast side is summed in order.
    __syncthreads();  // of the task before: its sums are read
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
      for (int c = 0; c < 4; c++) s[result_at(a, c)] = sum[a][c];
    __syncthreads();  // the tile is there
    float* out = p.dmask.data + (batches.end - batches.begin == 1 ? batches.begin * p.dmask.batch : 0) +
                 (heads.end - heads.begin == 1 ? heads.begin * p.dmask.head : 0);
    const int rows = plan.q_len == 1 ? 1 : static_cast<int>(row_range.end - row_range.begin);
    const int keys = plan.k_len == 1 ? 1 : static_cast<int>(key_range.end - key_range.begin);
    for (int e = threadIdx.x; e < rows * keys; e += kThreads) {
      const int r = e / keys, k = e % keys;
      float total = 0;
      for (int i = r; i < (plan.q_len == 1 ? kTile : r + 1); i++)
        for (int j = k; j < (plan.k_len == 1 ? kTile : k + 1); j++) total += s[j * kStride + i];
      out[(row0 + r) * p.dmask.row + (key0 + k) * p.dmask.key] = total;
    }
  }
}

}  // namespace dlops::attention
