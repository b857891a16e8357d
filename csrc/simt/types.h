// CUDA's vector and 16-bit types, for a compiler without CUDA's headers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace dlops::simt {

inline unsigned count(dim3 d) { return d.x * d.y * d.z; }

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <int bytes>
struct Whole {  // moves a vector as one access, as the GPU does
  typedef uint32_t type __attribute__((vector_size(bytes), may_alias));
};

}  // namespace dlops::simt

// Kernels are visible symbols, so that reports can name them; the types of their template arguments must be too.
#define DLOPS_SIMT_VISIBLE [[gnu::visibility("default")]]

// The race build sees every access: there a vector must be copied as one, not member by member.
#if defined(__SANITIZE_THREAD__)
#define DLOPS_SIMT_WHOLE(V)                                        \
  V(const V& o) { *this = o; }                                     \
  V& operator=(const V& o) {                                       \
    using W = ::dlops::simt::Whole<sizeof(V)>::type;               \
    *reinterpret_cast<W*>(this) = *reinterpret_cast<const W*>(&o); \
    return *this;                                                  \
  }
#else
#define DLOPS_SIMT_WHOLE(V)
#endif
#define DLOPS_SIMT_VECTOR2(V, T)                       \
  struct alignas(2 * sizeof(T)) DLOPS_SIMT_VISIBLE V { \
    T x, y;                                            \
    V() = default;                                     \
    constexpr V(T x, T y) : x(x), y(y) {}              \
    DLOPS_SIMT_WHOLE(V)                                \
  };                                                   \
  inline V make_##V(T x, T y) { return V(x, y); }
#define DLOPS_SIMT_VECTOR4(V, T)                                \
  struct alignas(16) DLOPS_SIMT_VISIBLE V {                     \
    T x, y, z, w;                                               \
    V() = default;                                              \
    constexpr V(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {} \
    DLOPS_SIMT_WHOLE(V)                                         \
  };                                                            \
  inline V make_##V(T x, T y, T z, T w) { return V(x, y, z, w); }
DLOPS_SIMT_VECTOR2(float2, float)
DLOPS_SIMT_VECTOR2(int2, int)
DLOPS_SIMT_VECTOR2(uint2, unsigned)
DLOPS_SIMT_VECTOR2(double2, double)
DLOPS_SIMT_VECTOR4(float4, float)
DLOPS_SIMT_VECTOR4(int4, int)
DLOPS_SIMT_VECTOR4(uint4, unsigned)

namespace dlops::simt {

inline float bf16_to_float(uint16_t h) { return bits<float>(uint32_t(h) << 16); }
inline uint16_t float_to_bf16(float f) {  // to nearest even
  const uint32_t u = bits<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the hardware's NaN
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return bits<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = float(mantissa) * 0x1p-24f;  // subnormal
  return sign ? -magnitude : magnitude;
}
inline uint16_t float_to_half(float f) {  // to nearest even
  const uint32_t u = bits<uint32_t>(f), sign = (u >> 16) & 0x8000;
  uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7fff;
  if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (a < 0x38800000u)                                   // subnormal: adding 0.5 lets the FPU round
    return uint16_t(sign | (bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000u));
  a += 0xfff + ((a >> 13) & 1);
  return uint16_t(sign | ((a - 0x38000000u) >> 13));
}

}  // namespace dlops::simt

struct DLOPS_SIMT_VISIBLE __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float f) : bits(dlops::simt::float_to_bf16(f)) {}
  operator float() const { return dlops::simt::bf16_to_float(bits); }
};
struct DLOPS_SIMT_VISIBLE __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float f) : bits(dlops::simt::float_to_half(f)) {}
  operator float() const { return dlops::simt::half_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct alignas(4) __half2 { __half x, y; };
