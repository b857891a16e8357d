// The vector lanes that csrc/philox.h runs in on a CPU: kLanes counters at once.
#pragma once
#include "../philox.h"
#include "simd.h"

namespace dlops {
namespace {

struct Lanes {
  using F = Vec;
  using U = VecU;
  DLOPS_INLINE F f(float x) { return set1(x); }
  DLOPS_INLINE U u(uint32_t x) { return set1u(x); }
  DLOPS_INLINE F add(F a, F b) { return a + b; }
  DLOPS_INLINE F mul(F a, F b) { return a * b; }
  DLOPS_INLINE F fma(F a, F b, F c) { return dlops::fma(a, b, c); }
  DLOPS_INLINE F sqrt(F a) { return dlops::sqrt(a); }
  DLOPS_INLINE U add(U a, uint32_t b) { return a + b; }
  DLOPS_INLINE U sub(U a, U b) { return a - b; }
  DLOPS_INLINE U flip(U a, U b) { return a ^ b; }
  DLOPS_INLINE U xor3(U a, U b, U c) { return a ^ b ^ c; }
  template <int n>
  DLOPS_INLINE U shl(U a) {
    return a << n;
  }
  template <int n>
  DLOPS_INLINE U shr(U a) {
    return a >> n;
  }
  template <int n>
  DLOPS_INLINE U sar(U a) {
    return as<U>(as<VecI>(a) >> n);
  }
  DLOPS_INLINE F from_unsigned(U a) { return __builtin_convertvector(a, F); }
  DLOPS_INLINE F from_signed(U a) { return __builtin_convertvector(as<VecI>(a), F); }
  DLOPS_INLINE U bits(F a) { return as<U>(a); }
  DLOPS_INLINE F value(U a) { return as<F>(a); }
  DLOPS_INLINE F select(U mask, F a, F b) { return dlops::select(as<VecI>(mask) < 0, a, b); }

  // The round keys of one seed, ready in lanes: made once per span, read from L1 by every block.
  struct Key {
    explicit Key(uint64_t seed) {
      for (uint32_t r = 0; r < 10; r++) {
        lo[r] = set1u(static_cast<uint32_t>(seed) + r * philox::kWeyl0);
        hi[r] = set1u(static_cast<uint32_t>(seed >> 32) + r * philox::kWeyl1);
      }
    }
    U lo[10], hi[10];
  };
  DLOPS_INLINE U key0(const Key& key, int round) { return key.lo[round]; }
  DLOPS_INLINE U key1(const Key& key, int round) { return key.hi[round]; }

  // The multiplier of x86 takes the even 32-bit lanes; the odd ones are shifted down for it.
  DLOPS_INLINE void mulhilo(U a, uint32_t m, U& hi, U& lo) {
#if defined(__AVX512F__)
    __m512i k = _mm512_set1_epi64(m), even = _mm512_mul_epu32((__m512i)a, k);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), k);
    lo = (U)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
    hi = (U)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
#elif defined(__AVX2__)
    __m256i k = _mm256_set1_epi64x(m), even = _mm256_mul_epu32((__m256i)a, k);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), k);
    lo = (U)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    hi = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
    for (int i = 0; i < kLanes; i++) {
      uint64_t p = static_cast<uint64_t>(a[i]) * m;
      hi[i] = static_cast<uint32_t>(p >> 32);
      lo[i] = static_cast<uint32_t>(p);
    }
#endif
  }
};

// The 4 kLanes normals of elements [4 group, 4 group + 4 kLanes) of one sample, in element order.
DLOPS_INLINE void normals(uint64_t group, int32_t step, const Lanes::Key& key, Vec (&out)[4]) {
  VecU lo = set1u(static_cast<uint32_t>(group)) + as<VecU>(lane_index());
  VecU carry = as<VecU>(lo < static_cast<uint32_t>(group)) & 1u;
  Vec n[4];
  philox::normal4<Lanes>(lo, set1u(static_cast<uint32_t>(group >> 32)) + carry, step, key, n);
  // n[j] holds elements j, 4 + j, 8 + j, ...: two rounds of zips put them in order.
  Vec a = zip_lo(n[0], n[2]), b = zip_lo(n[1], n[3]), c = zip_hi(n[0], n[2]), d = zip_hi(n[1], n[3]);
  out[0] = zip_lo(a, b);
  out[1] = zip_hi(a, b);
  out[2] = zip_lo(c, d);
  out[3] = zip_hi(c, d);
}

}  // namespace
}  // namespace dlops
