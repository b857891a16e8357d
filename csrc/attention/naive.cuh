// The rung `naive`: the textbook's three steps, a kernel each, with all scores [batch, heads, q_len, k_len] in memory. For
// L rows and keys it writes and reads L^2 numbers several times, where the inputs have L d: memory is what it waits for.
#pragma once
#include "../catalogue.h"
#include "../cuda/reduce.h"
#include "../cuda/rows.h"
#include "scores.cuh"

namespace dlops::attention {

#define DLOPS_ATTENTION_KERNEL(variant, tile, name) \
  DLOPS_CUDA_KERNEL("attention", "attention", variant, "sm_75 sm_80 sm_90a", "f32 f16 bf16", tile, name, 0)

constexpr int kNaiveThreads = 256;

// Element `i` of [batch, heads, q_len, width] of the longest sequence.
struct NaiveIndex { int64_t batch, head, row, column; };
DLOPS_DEVICE NaiveIndex naive_index(const AttentionProblem& p, int64_t i, int64_t width) {
  const int64_t row = i / width, head = row / p.q_len;
  return {head / p.heads, head % p.heads, row % p.q_len, i % width};
}

constexpr KernelInfo kNaiveScores = DLOPS_ATTENTION_KERNEL("naive", "256 scores", "attention_naive_scores");
template <class T>
__global__ void __launch_bounds__(kNaiveThreads)
    attention_naive_scores(const __grid_constant__ AttentionForwardParams p) {
  const int64_t count = p.batch * p.heads * p.q_len * p.k_len;
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const NaiveIndex x = naive_index(p, at, p.k_len);
    const Head h = head_of(p, x.batch, x.head);
    float s = kNegativeInfinity;
    const Range seen = keys_of_row(p, h.sequence, x.row);
    if (x.row < h.rows && x.column >= seen.begin && x.column < seen.end) {
      const T *q = row_of<const T>(p.q, h, x.row), *k = key_of<const T>(p.k, h, x.column);
      float dot = 0.f;
      for (int64_t e = 0; e < p.d; e++) dot = fmaf(static_cast<float>(q[e]), static_cast<float>(k[e]), dot);
      s = score_of(p, h, dot, static_cast<int>(x.row), static_cast<int>(x.column)).value;
    }
    p.workspace[at] = s;
  }
}

constexpr KernelInfo kNaiveSoftmax = DLOPS_ATTENTION_KERNEL("naive", "1 row", "attention_naive_softmax");
// A warp has a row of scores, which become probabilities, those that dropout takes 0.
template <class T>
__global__ void __launch_bounds__(kNaiveThreads)
    attention_naive_softmax(const __grid_constant__ AttentionForwardParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = flat_row(); row < p.batch * p.heads * p.q_len; row += flat_rows()) {
    const NaiveIndex x = naive_index(p, row, 1);
    const Head h = head_of(p, x.batch, x.head);
    if (x.row >= h.rows) continue;
    float* s = p.workspace + row * p.k_len;
    float most = kNegativeInfinity;
    for (int64_t j = lane; j < p.k_len; j += 32) most = fmaxf(most, s[j]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(kWarp, most, d));
    Sums<1> sum{};
    const float base = most == kNegativeInfinity ? 0.f : most;
    for (int64_t j = lane; j < p.k_len; j += 32) sum.v[0] += expf(s[j] - base);
    const float total = warp_reduce(sum).v[0];
    const bool empty = total == 0.f;
    const float sink = p.sinks && !empty ? expf(p.sinks[h.head] - base) : 0.f;
    const float scale = empty ? 0.f : 1.f / (total + sink) / (1.f - p.dropout_p);
    const Dropout dropout(p, h);
    for (int64_t j = lane; j < p.k_len; j += 32) {
      const bool keeps = p.dropout_p == 0 || dropout.keeps(static_cast<int>(x.row), static_cast<int>(j));
      s[j] = keeps ? expf(s[j] - base) * scale : 0.f;
    }
    if (lane == 0) *lse_of(p.lse, h, x.row) = empty ? kNegativeInfinity : base + logf(total);
  }
}

constexpr KernelInfo kNaiveValues = DLOPS_ATTENTION_KERNEL("naive", "256 outputs", "attention_naive_values");
template <class T>
__global__ void __launch_bounds__(kNaiveThreads)
    attention_naive_values(const __grid_constant__ AttentionForwardParams p) {
  const int64_t count = p.batch * p.heads * p.q_len * p.dv;
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const NaiveIndex x = naive_index(p, at, p.dv);
    const Head h = head_of(p, x.batch, x.head);
    if (x.row >= h.rows) continue;
    const float* probability = p.workspace + at / p.dv * p.k_len;
    const T* v = key_of<const T>(p.v, h, 0) + x.column;
    float sum = 0.f;
    for (int64_t j = 0; j < h.keys; j++)  // a key that the row does not see may hold NaN
      if (probability[j] != 0.f) sum = fmaf(probability[j], static_cast<float>(v[j * p.v.row]), sum);
    row_of<T>(p.out, h, x.row)[x.column] = static_cast<T>(sum);
  }
}

}  // namespace dlops::attention
