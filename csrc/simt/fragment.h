// How 16-bit operands lie in registers: two per word, and lane t of a warp holds rows t/4 and t/4 + 8.
#pragma once
#include "tensor.h"
#include "types.h"

namespace dlops::simt {

template <Half16 type>
inline float to_float(uint16_t h) {
  return type == Half16::bf16 ? bf16_to_float(h) : half_to_float(h);
}
template <Half16 type>
inline float low(uint32_t word) {
  return to_float<type>(uint16_t(word));
}
template <Half16 type>
inline float high(uint32_t word) {
  return to_float<type>(uint16_t(word >> 16));
}

// A[16, 16]: words a0 a1 a2 a3 of lane t begin at (g, c) (g+8, c) (g, c+8) (g+8, c+8) with g = t/4, c = 2 (t%4).
inline int fragment_row(int t, int i) { return t / 4 + i % 2 * 8; }
inline int fragment_k(int t, int i) { return t % 4 * 2 + i / 2 * 8; }

}  // namespace dlops::simt
