// One float vector per instruction set, in about 200 lines. A kernel includes this header, is written once in terms of
// `Vec`, and is compiled once per level (CMakeLists.txt, dlops_cpu_kernels): generic (4 lanes, any CPU; NEON through it),
// AVX2 + FMA + F16C (8), AVX-512 (16). Everything here has internal linkage: two levels must not share a symbol, or the
// linker could give an old CPU the new CPU's code.
//
// +, -, *, / and comparisons are GCC's vector operators; a comparison gives lanes of 0 or -1. fma is always explicit
// (-ffp-contract=off), so every level rounds alike. Intrinsics appear only where the operators have no word for it.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../dtype.h"

#define DLOPS_INLINE static inline __attribute__((always_inline, unused))

namespace dlops {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));  // half-precision bits

DLOPS_INLINE Vec set1(float x) { return x - Vec{}; }
DLOPS_INLINE VecI set1i(int32_t x) { return x - VecI{}; }
DLOPS_INLINE VecU set1u(uint32_t x) { return x - VecU{}; }
DLOPS_INLINE Vec zero() { return Vec{}; }

// Reinterpret the bits of a vector.
template <class To, class From>
DLOPS_INLINE To as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return (To)v;
}

DLOPS_INLINE Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }
// As x86 minps/maxps: the second operand where either is NaN.
// (GCC makes a compare and a blend of the ?:, not minps.)
DLOPS_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
DLOPS_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
DLOPS_INLINE Vec abs(Vec a) { return as<Vec>(as<VecI>(a) & 0x7fffffff); }

DLOPS_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  Vec r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#endif
}

DLOPS_INLINE Vec sqrt(Vec a) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)a);
#else
  Vec r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}

// The sums and maxima across lanes fold halves, so their order is fixed for a given width only.
DLOPS_INLINE float reduce_add(Vec v) {
  float lane[kLanes];
  memcpy(lane, &v, sizeof v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}
DLOPS_INLINE float reduce_max(Vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; i++) best = v[i] > best ? v[i] : best;
  return best;
}

// (a0 b0 a1 b1 ...): the first and the second half of the interleaved lanes.
DLOPS_INLINE Vec zip_lo(Vec a, Vec b) {
  VecI m;
  for (int i = 0; i < kLanes; i++) m[i] = i / 2 + (i % 2 ? kLanes : 0);
  return __builtin_shuffle(a, b, m);
}
DLOPS_INLINE Vec zip_hi(Vec a, Vec b) {
  VecI m;
  for (int i = 0; i < kLanes; i++) m[i] = kLanes / 2 + i / 2 + (i % 2 ? kLanes : 0);
  return __builtin_shuffle(a, b, m);
}
DLOPS_INLINE VecI lane_index() {
  VecI m;
  for (int i = 0; i < kLanes; i++) m[i] = i;
  return m;
}

// ---- half types ----

// float16: sign 1, exponent 5, mantissa 10. The generic versions move the fields and let one float operation do the
// rounding and the subnormals.
DLOPS_INLINE float half_to_float(uint16_t h) {
  uint32_t magnitude = h & 0x7fffu, bits;
  if (magnitude >= 0x7c00u) {  // Inf, NaN
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {  // the exponent field is 112 too small: multiply by 2^112 (exact, subnormals too)
    bits = magnitude << 13;
    float f;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    memcpy(&bits, &f, 4);
  }
  bits |= static_cast<uint32_t>(h & 0x8000u) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
DLOPS_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu, h;
  if (magnitude > 0x7f800000u) {  // NaN
    h = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to Inf
    h = 0x7c00u;
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5 leaves a multiple of 2^-24, rounded, in the low bits
    float a;
    memcpy(&a, &magnitude, 4);
    a += 0.5f;
    memcpy(&h, &a, 4);
    h -= 0x3f000000u;
  } else {
    h = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;  // round to nearest even
  }
  return static_cast<uint16_t>(sign | h);
}
// bfloat16: the upper half of a float.
DLOPS_INLINE float bfloat_to_float(uint16_t b) {
  uint32_t bits = static_cast<uint32_t>(b) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
DLOPS_INLINE uint16_t float_to_bfloat(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;  // NaN
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// ---- loads and stores: T names the element type in memory, the register always holds float32 ----

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

DLOPS_INLINE float load1(const float* p) { return *p; }
DLOPS_INLINE float load1(const Half* p) { return half_to_float(p->bits); }
DLOPS_INLINE float load1(const Bfloat* p) { return bfloat_to_float(p->bits); }
DLOPS_INLINE void store1(float* p, float x) { *p = x; }
DLOPS_INLINE void store1(Half* p, float x) { p->bits = float_to_half(x); }
DLOPS_INLINE void store1(Bfloat* p, float x) { p->bits = float_to_bfloat(x); }

DLOPS_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
DLOPS_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

DLOPS_INLINE Vec load(const Bfloat* p) {
#if defined(__AVX512F__)
  return as<Vec>((VecU)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
#elif defined(__AVX2__)
  return as<Vec>((VecU)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  VecH h;
  memcpy(&h, p, sizeof h);
  return as<Vec>(__builtin_convertvector(h, VecU) << 16);
#endif
}
DLOPS_INLINE void store(Bfloat* p, Vec v) {
  VecU b = as<VecU>(v);
  VecU r = (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
  r = as<VecU>(select(v == v, as<Vec>(r), as<Vec>(set1u(0x7fc0u))));  // NaN
#if defined(__AVX512F__)
  __m256i h = _mm512_cvtepi32_epi16((__m512i)r);
#elif defined(__AVX2__)
  __m128i h = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)r), _mm256_extracti128_si256((__m256i)r, 1));
#else
  VecH h = __builtin_convertvector(r, VecH);
#endif
  memcpy(p, &h, sizeof h);
}

DLOPS_INLINE Vec load(const Half* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kLanes; i++) v[i] = load1(p + i);
  return v;
#endif
}
DLOPS_INLINE void store(Half* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; i++) store1(p + i, v[i]);
#endif
}

// The first n lanes (0 <= n <= kLanes); the others read `fill`, and are not written.
template <class T>
DLOPS_INLINE Vec load_part(const T* p, int n, float fill = 0.f) {
  float lane[kLanes];
  for (int i = 0; i < kLanes; i++) lane[i] = i < n ? load1(p + i) : fill;
  return load(lane);
}
template <class T>
DLOPS_INLINE void store_part(T* p, Vec v, int n) {
  float lane[kLanes];
  store(lane, v);
  for (int i = 0; i < n; i++) store1(p + i, lane[i]);
}

// Calls f with a null pointer of the element type, so that a kernel template is instantiated per dtype in one place.
template <class F>
DLOPS_INLINE void with_dtype(Dtype t, F f) {
  switch (t) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::f16: return f(static_cast<Half*>(nullptr));
    case Dtype::bf16: return f(static_cast<Bfloat*>(nullptr));
  }
}

}  // namespace
}  // namespace dlops
