// The rung `naive` of the backward: the formulas of backward.cuh as they stand, a warp per row for dq and a warp per key for
// dk and dv. Each recomputes its scores one at a time and reads the other side from memory for every one of them.
#pragma once
#include "backward.cuh"

namespace dlops::attention {

constexpr int kNaiveWarps = 4, kPerLane = 256 / 32;  // a lane has columns lane, lane + 32, .. of a head

// One after the other, as the forward's rung adds: equal scores, whose error then cancels against that of lse.
template <class T>
DLOPS_DEVICE float dot_of(const T* a, const T* b, int64_t width) {
  float sum = 0.f;
  for (int64_t c = 0; c < width; c++) sum = fmaf(static_cast<float>(a[c]), static_cast<float>(b[c]), sum);
  return sum;
}

// acc += w x
template <class T>
DLOPS_DEVICE void warp_add(float (&acc)[kPerLane], float w, const T* x, int64_t width) {
#pragma unroll
  for (int n = 0; n < kPerLane; n++) {
    const int64_t c = threadIdx.x + 32 * n;
    if (c < width) acc[n] = fmaf(w, static_cast<float>(x[c]), acc[n]);
  }
}
template <class T>
DLOPS_DEVICE void warp_write(T* to, const float (&acc)[kPerLane], float scale, int64_t width) {
#pragma unroll
  for (int n = 0; n < kPerLane; n++) {
    const int64_t c = threadIdx.x + 32 * n;
    if (c < width) to[c] = static_cast<T>(acc[n] * scale);
  }
}

// Of row i and key j, of which each lane brings its own; 0 where there is none.
template <class T>
DLOPS_DEVICE Gradient naive_gradient(const AttentionBackwardParams& p, const Head& h, const Dropout& dropout,
                                     const BackwardRows& rows, int64_t i, int64_t j, bool there) {
  if (!there) return {};
  const float dot = dot_of(row_of<const T>(p.q, h, i), key_of<const T>(p.k, h, j), p.d);
  const float dp = dot_of(row_of<const T>(p.dout, h, i), key_of<const T>(p.v, h, j), p.dv);
  return gradient_of(p, h, dropout, rows, dot, dp, static_cast<int>(i), static_cast<int>(j));
}

// dq of row i.
template <class T>
DLOPS_DEVICE void naive_row(const AttentionBackwardParams& p, const Head& h, const BackwardRows& rows,
                            int64_t i) {
  const Dropout dropout(p, h);
  const Range seen = keys_of_row(p, h.sequence, i);
  float dq[kPerLane] = {};
  for (int64_t j0 = seen.begin; j0 < seen.end; j0 += 32) {  // a lane has a key
    const int64_t j = j0 + threadIdx.x;
    const float mine = naive_gradient<T>(p, h, dropout, rows, i, j, j < seen.end).through;
    for (int lane = 0; lane < 32; lane++) {
      const float ds = __shfl_sync(kWarp, mine, lane);
      if (ds != 0) warp_add(dq, ds, key_of<const T>(p.k, h, j0 + lane), p.d);
    }
  }
  warp_write(row_of<T>(p.dq, h, i), dq, p.scale, p.d);
}

constexpr KernelInfo kBackwardNaiveRows = DLOPS_ATTENTION_BACKWARD(
    "naive", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "1 row per warp", "attention_backward_naive_rows", 0);
template <class T>
__global__ void __launch_bounds__(32 * kNaiveWarps)
    attention_backward_naive_rows(const __grid_constant__ AttentionBackwardParams p,
                                  const BackwardRows rows) {
  for (int64_t at = flat_row(); at < p.batch * p.heads * p.q_len; at += flat_rows()) {
    const int64_t i = at % p.q_len;
    const Head h = head_of(p, at / p.q_len / p.heads, at / p.q_len % p.heads);
    if (i < h.rows) naive_row<T>(p, h, rows, i);
  }
}

// After the passes that work on tiles, where a key may be hidden: they give it ds = 0 and multiply, so that a NaN or an
// infinity behind a mask (unwritten padding) reaches dq. A row that is not finite is computed again, touching only what it
// sees. Finite inputs cost one reading of dq.
constexpr KernelInfo kBackwardCareful = DLOPS_ATTENTION_BACKWARD(
    "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "1 row per warp", "attention_backward_careful", 0);
template <class T>
__global__ void __launch_bounds__(32 * kNaiveWarps)
    attention_backward_careful(const __grid_constant__ AttentionBackwardParams p, const BackwardRows rows) {
  for (int64_t at = flat_row(); at < p.batch * p.heads * p.q_len; at += flat_rows()) {
    const int64_t i = at % p.q_len;
    const Head h = head_of(p, at / p.q_len / p.heads, at / p.q_len % p.heads);
    if (i >= h.rows) continue;
    const T* dq = row_of<const T>(HeadsIn{p.dq.data, p.dq.batch, p.dq.head, p.dq.row}, h, i);
    bool finite = true;
    for (int64_t c = threadIdx.x; c < p.d; c += 32)
      finite &= fabsf(static_cast<float>(dq[c])) <= 3.402823466e38f;
    if (!__all_sync(kWarp, finite)) naive_row<T>(p, h, rows, i);
  }
}

constexpr KernelInfo kBackwardNaiveKeys = DLOPS_ATTENTION_BACKWARD(
    "naive", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "1 key per warp", "attention_backward_naive_keys", 0);
template <class T>
__global__ void __launch_bounds__(32 * kNaiveWarps)
    attention_backward_naive_keys(const __grid_constant__ AttentionBackwardParams p,
                                  const BackwardRows rows) {
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t at = flat_row(); at < p.batch * p.kv_heads * p.k_len; at += flat_rows()) {
    const int64_t j = at % p.k_len, batch = at / p.k_len / p.kv_heads, kv_head = at / p.k_len % p.kv_heads;
    const Head first = head_of(p, batch, kv_head * group);
    if (j >= written_length<Own::keys>(p, first.sequence)) continue;
    float dk[kPerLane] = {}, dv[kPerLane] = {};
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group && j < first.keys; head++) {
      const Head h = head_of(p, batch, head);
      const Dropout dropout(p, h);
      const Range seen = seen_by<Own::keys>(p, h.sequence, j);
      for (int64_t i0 = seen.begin; i0 < seen.end; i0 += 32) {  // a lane has a row
        const int64_t i = i0 + threadIdx.x;
        const Gradient mine = naive_gradient<T>(p, h, dropout, rows, i, j, i < seen.end);
        for (int lane = 0; lane < 32; lane++) {
          const float ds = __shfl_sync(kWarp, mine.through, lane),
                      prob = __shfl_sync(kWarp, mine.dropped, lane);
          if (ds != 0) warp_add(dk, ds, row_of<const T>(p.q, h, i0 + lane), p.d);
          if (prob != 0) warp_add(dv, prob, row_of<const T>(p.dout, h, i0 + lane), p.dv);
        }
      }
    }
    if (p.dk.data) warp_write(key_of<T>(p.dk, first, j), dk, p.scale, p.d);
    if (p.dv_.data) warp_write(key_of<T>(p.dv_, first, j), dv, 1.f, p.dv);
  }
}

}  // namespace dlops::attention
