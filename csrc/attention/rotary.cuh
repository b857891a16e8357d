// Rotary position embedding on the GPU: each thread turns 16 bytes of x (interleaved pairs), or 16 bytes of each half
// (pairs half a head apart), and writes as much. Memory bound: x is read once, y written once, and the tables, which all
// heads share, come from the L2. y may be x: a thread writes what it alone has read.
#pragma once
#include "../catalogue.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "params.h"

namespace dlops::attention {

// Values i .. i + n - 1 of a table, of which `left` exist; the rest is 0. wide: they start on 16 bytes, and all exist.
template <int n>
DLOPS_DEVICE void table_values(const void* table, Dtype dtype, int64_t i, int64_t left, bool wide,
                               float (&v)[n]) {
  if constexpr (n % 4 == 0) {
    if (wide && dtype == Dtype::f32) {
#pragma unroll
      for (int q = 0; q < n / 4; q++) {
        float quad[4];
        unpack<float>(__ldg(static_cast<const uint4*>(table) + i / 4 + q), quad);
#pragma unroll
        for (int j = 0; j < 4; j++) v[4 * q + j] = quad[j];
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < n; j++) {
    v[j] = 0.f;
    if (j >= left) continue;
    switch (dtype) {
      case Dtype::f32: v[j] = static_cast<const float*>(table)[i + j]; break;
      case Dtype::f16: v[j] = static_cast<float>(static_cast<const __half*>(table)[i + j]); break;
      case Dtype::bf16: v[j] = static_cast<float>(static_cast<const __nv_bfloat16*>(table)[i + j]); break;
    }
  }
}

// (a, b) turned. Products and sums round one by one, as on the CPU: the same bits.
DLOPS_DEVICE void turn(float& a, float& b, float cos, float sin) {
  const float to_a = __fadd_rn(__fmul_rn(a, cos), -__fmul_rn(b, sin));
  b = __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
  a = to_a;
}

// Chunks of a row that a thread takes: those of the turned part, then those that pass through.
template <class T>
inline int64_t rotary_turned(const RotaryParams& p) {
  return ceil_div(p.interleaved ? p.rotary : p.rotary / 2, kVec<T>);
}
template <class T>
inline int64_t rotary_chunks(const RotaryParams& p) {
  return rotary_turned<T>(p) + ceil_div(p.d - p.rotary, kVec<T>);
}

constexpr KernelInfo kRotary =
    DLOPS_CUDA_KERNEL("rotary", "attention", "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16",
                      "16 bytes, or 16 of each half", "rotary_fused", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    rotary_fused(const RotaryParams p, const int64_t turned, const int64_t chunks, const bool wide) {
  constexpr int V = kVec<T>;
  const int64_t half = p.rotary / 2;
  for (int64_t r = first_row(); r < p.batch * p.heads * p.rows; r += row_step()) {
    const int64_t row = r % p.rows, h = r / p.rows % p.heads, b = r / p.rows / p.heads;
    const T* x = static_cast<const T*>(p.x.data) + b * p.x.batch + h * p.x.head + row * p.x.row;
    T* y = static_cast<T*>(p.y.data) + b * p.y.batch + h * p.y.head + row * p.y.row;
    const int64_t table = b * p.table_batch + row * p.table_row;
    for (int64_t chunk = first_chunk(1); chunk < chunks; chunk += chunk_step(1)) {
      if (chunk >= turned) {
        const int64_t i = p.rotary + (chunk - turned) * V;
        store(y + i, load(x + i, p.d - i, wide), p.d - i, wide);
        continue;
      }
      const int64_t i = chunk * V;
      float a[V];
      if (p.interleaved) {
        unpack<T>(load(x + i, p.rotary - i, wide), a);
        float cos[V / 2], sin[V / 2];
        table_values(p.cos, p.table_dtype, table + i / 2, half - i / 2, wide, cos);
        table_values(p.sin, p.table_dtype, table + i / 2, half - i / 2, wide, sin);
#pragma unroll
        for (int j = 0; j < V / 2; j++) turn(a[2 * j], a[2 * j + 1], cos[j], p.inverse ? -sin[j] : sin[j]);
        store(y + i, pack<T>(a), p.rotary - i, wide);
      } else {
        float c[V], cos[V], sin[V];
        unpack<T>(load(x + i, half - i, wide), a);
        unpack<T>(load(x + half + i, half - i, wide), c);
        table_values(p.cos, p.table_dtype, table + i, half - i, wide, cos);
        table_values(p.sin, p.table_dtype, table + i, half - i, wide, sin);
#pragma unroll
        for (int j = 0; j < V; j++) turn(a[j], c[j], cos[j], p.inverse ? -sin[j] : sin[j]);
        store(y + i, pack<T>(a), half - i, wide);
        store(y + half + i, pack<T>(c), half - i, wide);
      }
    }
  }
}

}  // namespace dlops::attention
