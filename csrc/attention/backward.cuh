// The attention backward (Dao 2023, FlashAttention-2, algorithm 2), from what the forward saved:
//
//   p_ij = exp(s_ij - L_i)                        L_i = ln(exp(lse_i) + exp(sink))
//   dV_j = sum_i drop_ij p_ij dO_i                dP_ij = drop_ij dO_i . v_j
//   ds_ij = p_ij (dP_ij - delta_i)                delta_i = dO_i . O_i - dlse_i exp(L_i - lse_i)
//   dmask_ij = ds_ij                              dsink = -sum_i exp(sink - L_i) dO_i . O_i
//   dQ_i = scale sum_j ds_ij c_ij k_j             dK_j = scale sum_i ds_ij c_ij q_i         c_ij = 1 - tanh^2 of the softcap
//
// This file: the kernels around the two products' passes, and what they agree on. The passes: backward_mma.cuh (tensor
// cores), backward_fp32.cuh, naive_backward.cuh; mask_gradient.cuh.
#pragma once
#include "../catalogue.h"
#include "../cuda/reduce.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "tasks.cuh"

namespace dlops::attention {

#define DLOPS_ATTENTION_BACKWARD(variant, architectures, dtypes, tile, name, shared) \
  DLOPS_CUDA_KERNEL("attention_backward", "attention", variant, architectures, dtypes, tile, name, shared)

// Where a row's numbers are in the workspace: [batch, heads, total_q], of packed sequences [heads, total_q].
struct BackwardRows {
  float* total;  // L; +inf where the row sees no key, so that every p is 0
  float* delta;
  float* sink;  // the row's term of dsink; null: not wanted
  float* dq;    // [rows, d] float32, where dq is summed by atomics; else null
  int64_t count;

  DLOPS_DEVICE static int64_t row_of(const AttentionProblem& p, const Head& h, int64_t i) {
    return ((p.cu_q ? 0 : h.batch) * p.heads + h.head) * p.total_q + h.sequence.q_begin + i;
  }
};

inline int64_t backward_row_count(const AttentionProblem& p) {
  return (p.cu_q ? 1 : p.batch) * p.heads * p.total_q;
}

// ---- before: one warp per row ----

constexpr KernelInfo kBackwardPrepare = DLOPS_ATTENTION_BACKWARD(
    "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "1 row per warp", "attention_backward_prepare", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    attention_backward_prepare(const __grid_constant__ AttentionBackwardParams p, const BackwardRows rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t row = flat_thread() / 32; row < rows.count; row += flat_threads() / 32) {
    const int64_t i = row % p.total_q, h = row / p.total_q % p.heads, b = row / p.total_q / p.heads;
    const T* out = static_cast<const T*>(p.out.data) + b * p.out.batch + h * p.out.head + i * p.out.row;
    const T* dout = static_cast<const T*>(p.dout.data) + b * p.dout.batch + h * p.dout.head + i * p.dout.row;
    Sums<1> dot{};
    for (int64_t c = lane; c < p.dv; c += 32)
      dot.v[0] += static_cast<float>(out[c]) * static_cast<float>(dout[c]);
    dot = warp_reduce(dot);
    if (rows.dq)
      for (int64_t c = lane; c < p.d; c += 32) rows.dq[row * p.d + c] = 0;
    if (lane != 0) continue;
    const float lse = p.lse.data[b * p.lse.batch + h * p.lse.head + i];
    const bool sees = lse != kNegativeInfinity;
    float total = lse, delta = dot.v[0];
    if (p.sinks && sees) {
      const float sink = p.sinks[h];
      total = fmaxf(lse, sink) + log1pf(expf(-fabsf(lse - sink)));
    }
    // exp(L - lse) only counts where p does not vanish beside it: the bound keeps an infinity out of 0 times it.
    if (p.dlse.data && sees) {
      const float dlse = p.dlse.data[b * p.dlse.batch + h * p.dlse.head + i];
      delta -= dlse * expf(fminf(total - lse, 80.f));
    }
    rows.total[row] = sees ? total : -kNegativeInfinity;
    rows.delta[row] = delta;
    if (rows.sink) rows.sink[row] = sees ? -expf(p.sinks[h] - total) * dot.v[0] : 0.f;
  }
}

// ---- after ----

// One block per head; a thread sums every 256th row, then the block: a fixed order.
constexpr KernelInfo kBackwardSinks = DLOPS_ATTENTION_BACKWARD(
    "fused", "sm_75 sm_80 sm_90a", "f32", "1 head per block", "attention_backward_sinks", 0);
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    attention_backward_sinks(const __grid_constant__ AttentionBackwardParams p, const BackwardRows rows) {
  DLOPS_SHARED(Sums<1>, scratch, [32]);
  for (int64_t h = blockIdx.x; h < p.heads; h += gridDim.x) {
    Sums<1> sum{};
    for (int64_t first = h * p.total_q; first < rows.count; first += p.heads * p.total_q)
      for (int64_t i = threadIdx.x; i < p.total_q; i += kThreads) sum.v[0] += rows.sink[first + i];
    sum = block_reduce(sum, scratch);
    if (threadIdx.x == 0) p.dsinks[h] = sum.v[0];
  }
}

// dq, summed in float32 by atomics, to its own type.
constexpr KernelInfo kBackwardConvert = DLOPS_ATTENTION_BACKWARD(
    "fused", "sm_80 sm_90a", "f16 bf16", "1 row per warp", "attention_backward_convert", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    attention_backward_convert(const __grid_constant__ AttentionBackwardParams p, const BackwardRows rows) {
  for (int64_t row = flat_thread() / 32; row < rows.count; row += flat_threads() / 32) {
    const int64_t i = row % p.total_q, h = row / p.total_q % p.heads, b = row / p.total_q / p.heads;
    T* dq = static_cast<T*>(p.dq.data) + b * p.dq.batch + h * p.dq.head + i * p.dq.row;
    for (int64_t c = threadIdx.x % 32; c < p.d; c += 32)
      dq[c] = static_cast<T>(p.scale * rows.dq[row * p.d + c]);
  }
}

// One element: the dropped p, ds, and ds through the softcap.
struct Gradient { float dropped, ds, through; };
DLOPS_DEVICE Gradient gradient_of(const AttentionBackwardParams& p, const Head& head, const Dropout& dropout,
                                  const BackwardRows& rows, float dot, float dp, int i, int j) {
  const Score score = score_of(p, head, dot, i, j);
  const int64_t at = BackwardRows::row_of(p, head, i);
  const float prob = expf(score.value - rows.total[at]);
  const float drop = p.dropout_p == 0 ? 1.f : dropout.keeps(i, j) ? 1.f / (1.f - p.dropout_p) : 0.f;
  const float ds = prob == 0 ? 0.f : prob * (dp * drop - rows.delta[at]);  // what is hidden may hold anything
  return {prob * drop, ds, ds * (1.f - score.tanh * score.tanh)};
}

// ---- what a block of a pass owns ----

enum class Own { rows, keys };  // dq; dk and dv

// The other side's indices that index i of the owned side and it see each other, by window and length.
template <Own own>
DLOPS_DEVICE Range seen_by(const AttentionProblem& p, const Sequence& s, int64_t i) {
  return own == Own::rows ? keys_of_row(p, s, i) : rows_of_keys(p, s, {i, i + 1});
}
template <Own own>
DLOPS_DEVICE int64_t owned_length(const Sequence& s) {
  return own == Own::rows ? s.q_len : s.k_len;
}
// Keys past a sample's key_lengths have a gradient too: 0.
template <Own own>
DLOPS_DEVICE int64_t written_length(const AttentionProblem& p, const Sequence& s) {
  return own == Own::rows || p.cu_k ? owned_length<own>(s) : p.k_len;
}

// What the indices [first, first + count) of the owned side see: any of them, each of them. count: what exists; > 0.
struct Sight {
  int any_begin, any_end, all_begin, all_end;
  DLOPS_DEVICE bool any(int begin, int end) const { return any_begin < end && begin < any_end; }
  DLOPS_DEVICE bool all(int begin, int end) const { return all_begin <= begin && end <= all_end; }
};
template <Own own>
DLOPS_DEVICE Sight sight_of(const AttentionProblem& p, const Sequence& s, int64_t first, int64_t count) {
  const int64_t left = owned_length<own>(s) - first;
  if (left <= 0) return {0, 0, 0, 0};
  const Range a = seen_by<own>(p, s, first), b = seen_by<own>(p, s, first + lesser(count, left) - 1);
  const bool whole = count <= left;
  return {static_cast<int>(a.begin), static_cast<int>(b.end), static_cast<int>(b.begin),
          whole ? static_cast<int>(a.end) : 0};
}

// A tile of the owned side of one head. Tiles of a head follow each other (its other side stays in L2), the longest of a
// causal mask first.
struct OwnedTile {
  int64_t batch, head, first;  // head: of q, or of k
};
template <Own own>
DLOPS_DEVICE OwnedTile owned_tile(const AttentionProblem& p, int64_t task, int64_t tiles, int tile) {
  const int64_t heads = own == Own::rows ? p.heads : p.kv_heads, t = task % tiles, bh = task / tiles;
  return {bh / heads, bh % heads, (own == Own::rows ? tiles - 1 - t : t) * tile};
}

}  // namespace dlops::attention
