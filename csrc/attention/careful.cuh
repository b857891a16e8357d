// One row by one warp, touching no value that the row does not see.
//
// Kernels that work on tiles give a hidden key the probability 0 and multiply: where its value is NaN or infinite (unwritten
// padding behind a mask), 0 * NaN reaches the output. So a row whose scores are fine and whose output is not finite is
// computed again, here. Finite inputs never come this way.
#pragma once
#include "../cuda/reduce.h"
#include "scores.cuh"

namespace dlops::attention {

// Where the element type is known at run time only.
DLOPS_DEVICE float load_float(const void* x, Dtype t, int64_t at) {
  switch (t) {
    case Dtype::f32: return static_cast<const float*>(x)[at];
    case Dtype::f16: return static_cast<float>(static_cast<const __half*>(x)[at]);
    default: return static_cast<float>(static_cast<const __nv_bfloat16*>(x)[at]);
  }
}
DLOPS_DEVICE void store_float(void* x, Dtype t, int64_t at, float v) {
  switch (t) {
    case Dtype::f32: static_cast<float*>(x)[at] = v; break;
    case Dtype::f16: static_cast<__half*>(x)[at] = __float2half(v); break;
    case Dtype::bf16: static_cast<__nv_bfloat16*>(x)[at] = __float2bfloat16(v); break;
  }
}

DLOPS_DEVICE bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// Row i of out, whose lse is known and finite. All 32 lanes call.
template <class P>
__device__ __attribute__((noinline)) void careful_row(const P& p, const Head& h, int i, float lse) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t q = row_at(p.q, h, i), out = row_at(p.out, h, i);
  const Visible see = visible_from(p, h.keys, h.shift, i, 0);
  const Dropout dropout(p, h);
  float o[8] = {};  // columns lane + 32 c
  for (int j = see.begin; j < see.end; j++) {
    const int64_t k = key_at(p.k, h, j), v = key_at(p.v, h, j);
    Sums<1> dot{};
    for (int e = lane; e < p.d; e += 32)
      dot.v[0] = fmaf(load_float(p.q.data, p.dtype, q + e), load_float(p.k.data, p.dtype, k + e), dot.v[0]);
    const float probability = expf(score_of(p, h, warp_reduce(dot).v[0], i, j).value - lse);
    if (probability == 0.f || (p.dropout_p > 0 && !dropout.keeps(i, j))) continue;
#pragma unroll
    for (int c = 0; c < 8; c++)
      if (lane + 32 * c < p.dv)
        o[c] = fmaf(probability, load_float(p.v.data, p.dtype, v + lane + 32 * c), o[c]);
  }
  const float sink = p.sinks ? expf(p.sinks[h.head] - lse) : 0.f;
  const float scale = 1.f / (1.f + sink) / (1.f - p.dropout_p);
#pragma unroll
  for (int c = 0; c < 8; c++)
    if (lane + 32 * c < p.dv) store_float(p.out.data, p.dtype, out + lane + 32 * c, o[c] * scale);
}

// For a warp that has written its rows: computes again those of the lanes with `again`, whose row and lse are `i`, `lse`; one
// lane per row. All lanes call.
template <class P>
DLOPS_DEVICE void careful_rows(bool again, const P& p, const Head& h, int i, float lse) {
  uint32_t left = __ballot_sync(kWarp, again);
  if (left == 0) return;
  __syncwarp();  // what was written is overwritten
  for (; left != 0; left &= left - 1) {
    const int from = __ffs(static_cast<int>(left)) - 1;
    careful_row(p, h, __shfl_sync(kWarp, i, from), __shfl_sync(kWarp, lse, from));
  }
}

}  // namespace dlops::attention
