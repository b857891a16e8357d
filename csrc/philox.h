// Counter-based normals: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4)
// followed by the Box-Muller transform (Box and Muller 1958).
//
// One source for every device. The arithmetic is a template over `L`, the lanes it runs in: one float in a CUDA thread,
// 4, 8 or 16 floats in a CPU register. It uses nothing but integer operations and correctly rounded add, mul, fma and
// sqrt in a fixed order, so every device computes the same bits. That is a promise: tests/diffusion/test_noise.py keeps
// a table of hashes.
//
// L supplies   F, U                              float and uint32 lanes
//              f(float), u(uint32_t)             broadcast
//              fma, mul, add, sqrt               correctly rounded, never contracted
//              mulhilo(U a, uint32_t m, U& hi, U& lo)    64-bit product of each lane with a constant
//              xor3(U, U, uint32_t), add(U, uint32_t), shl<n>, shr<n> (logical), sar<n> (arithmetic), sub(U, U)
//              from_unsigned(U), from_signed(U)  integer -> float, round to nearest even
//              bits(F), value(U)                 reinterpret
//              select(U mask, F a, F b)          mask's top bit set: a, else b
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define DLOPS_PHILOX_FN __host__ __device__ __forceinline__
#else
#define DLOPS_PHILOX_FN inline __attribute__((always_inline))
#endif

namespace dlops::philox {

// The keys of round r are the seed's halves plus r times these.
constexpr uint32_t kWeyl0 = 0x9E3779B9u;  // the golden ratio
constexpr uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1

// c: the counter, 4 words of 32 bits, replaced by the 4 random words.
template <class L>
DLOPS_PHILOX_FN void philox4x32(typename L::U (&c)[4], const typename L::Key& key) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    typename L::U hi0, lo0, hi1, lo1;
    L::mulhilo(c[0], 0xD2511F53u, hi0, lo0);
    L::mulhilo(c[2], 0xCD9E8D57u, hi1, lo1);
    c[0] = L::xor3(hi1, c[1], L::key0(key, round));
    c[2] = L::xor3(hi0, c[3], L::key1(key, round));
    c[1] = lo1;
    c[3] = lo0;
  }
}

// ln(u) for u in (0, 1]: u = m 2^e with m in [2/3, 4/3), ln u = e ln 2 + ln(1+z), z = m - 1 (exact),
// ln(1+z) = z - z^2/2 + z^3 q(z), q of degree 6 (minimax, 3.7e-8 relative). At u = 1 the result is exactly 0.
template <class L>
DLOPS_PHILOX_FN typename L::F log_unit(typename L::F u) {
  typename L::U i = L::bits(u);
  typename L::U e = L::template sar<23>(L::sub(i, L::u(0x3f2aaaabu)));  // 0x3f2aaaab = 2/3
  typename L::F z = L::add(L::value(L::sub(i, L::template shl<23>(e))), L::f(-1.f));
  typename L::F exponent = L::from_signed(e);
  typename L::F q = L::f(1.382023990e-01f);
  q = L::fma(q, z, L::f(-1.512218267e-01f));
  q = L::fma(q, z, L::f(1.404230893e-01f));
  q = L::fma(q, z, L::f(-1.647232622e-01f));
  q = L::fma(q, z, L::f(2.000792027e-01f));
  q = L::fma(q, z, L::f(-2.500423789e-01f));
  q = L::fma(q, z, L::f(3.333326578e-01f));
  q = L::fma(q, z, L::f(-0.5f));
  typename L::F y = L::fma(L::mul(z, z), q, z);
  // ln 2 in two parts: the first has 9 trailing zero bits, so exponent * it is exact.
  y = L::fma(exponent, L::f(-2.12194440e-4f), y);
  return L::fma(exponent, L::f(0.693359375f), y);
}

// sin and cos of 2 pi b / 2^32. The top bits of b give the nearest quarter turn; the rest, t in [-1/8, 1/8) turns,
// goes through polynomials: sin 3.2e-9 relative, cos 3.8e-8 absolute (minimax).
template <class L>
DLOPS_PHILOX_FN void sincos_turn(typename L::U b, typename L::F& sine, typename L::F& cosine) {
  typename L::U quarter = L::template shr<30>(L::add(b, 0x20000000u));
  typename L::F t = L::mul(L::from_signed(L::sub(b, L::template shl<30>(quarter))), L::f(0x1p-32f));
  typename L::F y = L::mul(t, t);
  typename L::F s = L::f(-7.539358521e+01f);
  s = L::fma(s, y, L::f(8.159235382e+01f));
  s = L::fma(s, y, L::f(-4.134166336e+01f));
  s = L::fma(s, y, L::f(6.283185482e+00f));
  s = L::mul(s, t);
  typename L::F c = L::f(-8.362918854e+01f);
  c = L::fma(c, y, L::f(6.492242432e+01f));
  c = L::fma(c, y, L::f(-1.973916245e+01f));
  c = L::fma(c, y, L::f(1.f));
  // Quarter 1: (c, -s), 2: (-s, -c), 3: (-c, s). Odd quarters swap, then bit 1 of quarter (quarter + 1) is the sign.
  typename L::U odd = L::template shl<31>(quarter);
  typename L::F a = L::select(odd, c, s), d = L::select(odd, s, c);
  sine = L::value(L::flip(L::bits(a), L::template shl<31>(L::template shr<1>(quarter))));
  cosine = L::value(L::flip(L::bits(d), L::template shl<31>(L::template shr<1>(L::add(quarter, 1u)))));
}

// Two normals from two words: radius sqrt(-2 ln u) with u = (r0 + 1/2) / 2^32 in (0, 1], angle r1 turns.
template <class L>
DLOPS_PHILOX_FN void box_muller(typename L::U r0, typename L::U r1, typename L::F& n0, typename L::F& n1) {
  typename L::F u = L::fma(L::from_unsigned(r0), L::f(0x1p-32f), L::f(0x1p-33f));
  typename L::F radius = L::sqrt(L::mul(L::f(-2.f), log_unit<L>(u)));
  typename L::F s, c;
  sincos_turn<L>(r1, s, c);
  n0 = L::mul(radius, s);
  n1 = L::mul(radius, c);
}

// The normals of elements 4g .. 4g+3 of one sample. The value depends on (seed, step, element) and on nothing else.
template <class L>
DLOPS_PHILOX_FN void normal4(typename L::U group_lo, typename L::U group_hi, int32_t step,
                             const typename L::Key& key, typename L::F (&n)[4]) {
  typename L::U c[4] = {group_lo, group_hi, L::u(static_cast<uint32_t>(step)), L::u(0u)};
  philox4x32<L>(c, key);
  box_muller<L>(c[0], c[1], n[0], n[1]);
  box_muller<L>(c[2], c[3], n[2], n[3]);
}

// One lane: a CUDA thread, or plain C++ (the naive rung).
struct Scalar {
  using F = float;
  using U = uint32_t;
  static DLOPS_PHILOX_FN F f(float x) { return x; }
  static DLOPS_PHILOX_FN U u(uint32_t x) { return x; }
  static DLOPS_PHILOX_FN U add(U a, uint32_t b) { return a + b; }
  static DLOPS_PHILOX_FN U sub(U a, U b) { return a - b; }
  static DLOPS_PHILOX_FN U flip(U a, U b) { return a ^ b; }
  static DLOPS_PHILOX_FN U xor3(U a, U b, U c) { return a ^ b ^ c; }
  struct Key {
    DLOPS_PHILOX_FN Key(uint64_t seed)
        : lo(static_cast<uint32_t>(seed)), hi(static_cast<uint32_t>(seed >> 32)) {}
    uint32_t lo, hi;
  };
  static DLOPS_PHILOX_FN U key0(const Key& key, int round) { return key.lo + round * kWeyl0; }
  static DLOPS_PHILOX_FN U key1(const Key& key, int round) { return key.hi + round * kWeyl1; }
  template <int n>
  static DLOPS_PHILOX_FN U shl(U a) {
    return a << n;
  }
  template <int n>
  static DLOPS_PHILOX_FN U shr(U a) {
    return a >> n;
  }
  template <int n>
  static DLOPS_PHILOX_FN U sar(U a) {
    return static_cast<U>(static_cast<int32_t>(a) >> n);
  }
  static DLOPS_PHILOX_FN void mulhilo(U a, uint32_t m, U& hi, U& lo) {
    uint64_t p = static_cast<uint64_t>(a) * m;
    hi = static_cast<U>(p >> 32);
    lo = static_cast<U>(p);
  }
  static DLOPS_PHILOX_FN F select(U mask, F a, F b) { return static_cast<int32_t>(mask) < 0 ? a : b; }
#if defined(__CUDA_ARCH__)
  static DLOPS_PHILOX_FN F add(F a, F b) { return __fadd_rn(a, b); }
  static DLOPS_PHILOX_FN F mul(F a, F b) { return __fmul_rn(a, b); }
  static DLOPS_PHILOX_FN F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  static DLOPS_PHILOX_FN F sqrt(F a) { return __fsqrt_rn(a); }
  static DLOPS_PHILOX_FN F from_unsigned(U a) { return __uint2float_rn(a); }
  static DLOPS_PHILOX_FN F from_signed(U a) { return __int2float_rn(static_cast<int>(a)); }
  static DLOPS_PHILOX_FN U bits(F a) { return __float_as_uint(a); }
  static DLOPS_PHILOX_FN F value(U a) { return __uint_as_float(a); }
#else
  static DLOPS_PHILOX_FN F add(F a, F b) { return a + b; }
  static DLOPS_PHILOX_FN F mul(F a, F b) { return a * b; }
  static DLOPS_PHILOX_FN F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  static DLOPS_PHILOX_FN F sqrt(F a) { return __builtin_sqrtf(a); }
  static DLOPS_PHILOX_FN F from_unsigned(U a) { return static_cast<float>(a); }
  static DLOPS_PHILOX_FN F from_signed(U a) { return static_cast<float>(static_cast<int32_t>(a)); }
  static DLOPS_PHILOX_FN U bits(F a) {
    U b;
    __builtin_memcpy(&b, &a, 4);
    return b;
  }
  static DLOPS_PHILOX_FN F value(U a) {
    F b;
    __builtin_memcpy(&b, &a, 4);
    return b;
  }
#endif
};

}  // namespace dlops::philox
