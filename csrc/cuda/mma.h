// The tensor cores' instructions, one per function, and the moves between shared memory and their register fragments.
// T: __half or __nv_bfloat16; accumulators are float32. Sections are those of the PTX ISA 9.0.
#pragma once
#include <type_traits>

#include "ptx.h"
#include "swizzle.h"

namespace dlops::ptx {

#if !defined(__CUDACC__)
template <class T>
constexpr simt::Half16 kHalf16 = std::is_same_v<T, __half> ? simt::Half16::f16 : simt::Half16::bf16;
#endif
template <class T>
constexpr bool kTensorCoreType = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

// ---- N = 1, 2 or 4 matrices [8, 8] of 16-bit elements between shared memory and a warp's registers ----
// Lanes 8i .. 8i + 7 bring the 16-byte aligned addresses of the rows of matrix i (the other lanes' must be valid on sm_75
// only). Register i of lane 4r + c holds elements (r, 2c) and (r, 2c + 1) of matrix i; with _trans, of its transpose.

#define DLOPS_LDMATRIX(trans)                                                                \
  if constexpr (N == 1)                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(r[0])                                                                \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else if constexpr (N == 2)                                                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(r[0]), "=r"(r[1])                                                    \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else                                                                                       \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                 : "r"(address)                                                              \
                 : "memory")

// 9.7.14.5.15, ldmatrix.
template <int N>
DLOPS_DEVICE void ldmatrix(uint32_t (&r)[N], uint32_t address DLOPS_LOC) {
  static_assert(N == 1 || N == 2 || N == 4);
  DLOPS_PTX(75, DLOPS_LDMATRIX(""), simt::ldmatrix(r, N, address, false, loc));
}
template <int N>
DLOPS_DEVICE void ldmatrix_trans(uint32_t (&r)[N], uint32_t address DLOPS_LOC) {
  static_assert(N == 1 || N == 2 || N == 4);
  DLOPS_PTX(75, DLOPS_LDMATRIX(".trans"), simt::ldmatrix(r, N, address, true, loc));
}
#undef DLOPS_LDMATRIX

#define DLOPS_STMATRIX(trans)                                                                                \
  if constexpr (N == 1)                                                                                      \
    asm volatile("stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0])   \
                 : "memory");                                                                                \
  else if constexpr (N == 2)                                                                                 \
    asm volatile("stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%0], {%1, %2};" ::"r"(address),         \
                 "r"(r[0]), "r"(r[1])                                                                        \
                 : "memory");                                                                                \
  else                                                                                                       \
    asm volatile("stmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), \
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])                                                  \
                 : "memory")

// 9.7.14.5.16, stmatrix (sm_90).
template <int N>
DLOPS_DEVICE void stmatrix(const uint32_t (&r)[N], uint32_t address DLOPS_LOC) {
  static_assert(N == 1 || N == 2 || N == 4);
  DLOPS_PTX(90, DLOPS_STMATRIX(""), simt::stmatrix(r, N, address, false, loc));
}
template <int N>
DLOPS_DEVICE void stmatrix_trans(const uint32_t (&r)[N], uint32_t address DLOPS_LOC) {
  static_assert(N == 1 || N == 2 || N == 4);
  DLOPS_PTX(90, DLOPS_STMATRIX(".trans"), simt::stmatrix(r, N, address, true, loc));
}
#undef DLOPS_STMATRIX

// ---- mma (sm_80) ----

// One warp: d[16, 8] += a[16, 16] b[16, 8]. Fragments: 9.7.14.5.8; ldmatrix x4 of a row-major A gives a, ldmatrix x2 of
// B stored [8, 16] gives b. 9.7.14.5.14, mma.
template <class T>
DLOPS_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] DLOPS_LOC) {
  static_assert(kTensorCoreType<T>);
#define DLOPS_MMA(type)                                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  DLOPS_PTX(80, if constexpr (std::is_same_v<T, __half>) DLOPS_MMA("f16");
            else DLOPS_MMA("bf16"), simt::mma_m16n8k16(kHalf16<T>, d, a, b, loc));
#undef DLOPS_MMA
}

// ---- wgmma (sm_90a): one warpgroup of four warps, asynchronous ----

// In which direction a matrix of shared memory lies contiguous. For A [M, K] and B [N, K], k is row-major.
enum class Major { k, mn };

// How wgmma finds a matrix in shared memory. 9.7.15.5.1.2.2; layouts: 9.7.15.5.1.2.1. leading, stride in bytes:
//   Major::k,  no swizzle: leading from 8 columns to the next 8, stride from 8 rows to the next 8;
//   Major::k,  swizzled:   leading unused, stride as above: 8 * swizzle_span in a dense tile;
//   Major::mn, no swizzle: leading from 8 of K to the next 8, stride from 8 of M or N to the next 8;
//   Major::mn, swizzled:   leading from one span of M or N to the next, stride from 8 of K to the next 8.
// A step of 16 along K within a k-major tile adds 32 bytes to `p`.
DLOPS_DEVICE uint64_t wgmma_descriptor(const void* p, uint32_t leading, uint32_t stride,
                                       Swizzle swizzle DLOPS_LOC) {
  uint32_t address;
  DLOPS_PTX(75, address = shared_address(p), address = simt::shared_address(p, loc));
  const auto field = [](uint32_t x) { return static_cast<uint64_t>((x & 0x3ffff) >> 4); };
  const uint64_t mode =
      swizzle == Swizzle::none ? 0 : 4 - static_cast<uint64_t>(swizzle);  // 1: 128 bytes, 3: 32
  return field(address) | field(leading) << 16 | field(stride) << 32 | mode << 62;
}

// clang-format off
// The accumulators' numbers in the instruction's text, and the accumulators. (nvcc has no named operands.)
#define DLOPS_NUMBERS_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DLOPS_NUMBERS_64 DLOPS_NUMBERS_32 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DLOPS_NUMBERS_96 DLOPS_NUMBERS_64 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DLOPS_NUMBERS_128 DLOPS_NUMBERS_96 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DLOPS_NUMBERS_192 DLOPS_NUMBERS_128 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define DLOPS_NUMBERS_256 DLOPS_NUMBERS_192 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DLOPS_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DLOPS_D16(i) DLOPS_D4(i), DLOPS_D4(i + 4), DLOPS_D4(i + 8), DLOPS_D4(i + 12)
#define DLOPS_D_32 DLOPS_D16(0)
#define DLOPS_D_64 DLOPS_D_32, DLOPS_D16(16)
#define DLOPS_D_96 DLOPS_D_64, DLOPS_D16(32)
#define DLOPS_D_128 DLOPS_D_96, DLOPS_D16(48)
#define DLOPS_D_192 DLOPS_D_128, DLOPS_D16(64), DLOPS_D16(80)
#define DLOPS_D_256 DLOPS_D_192, DLOPS_D16(96), DLOPS_D16(112)

// emit(type, N, the numbers of the inputs, which come after the accumulators)
#define DLOPS_WGMMA(emit, type)                                                       \
  if constexpr (N == 32) emit(type, 32, 16, 17, 18, 19, 20, 21, 22);                  \
  else if constexpr (N == 64) emit(type, 64, 32, 33, 34, 35, 36, 37, 38);             \
  else if constexpr (N == 96) emit(type, 96, 48, 49, 50, 51, 52, 53, 54);             \
  else if constexpr (N == 128) emit(type, 128, 64, 65, 66, 67, 68, 69, 70);           \
  else if constexpr (N == 192) emit(type, 192, 96, 97, 98, 99, 100, 101, 102);        \
  else emit(type, 256, 128, 129, 130, 131, 132, 133, 134)
#define DLOPS_WGMMA_SHARED(type, n, a_, b_, add, ta, tb, ...)                                                     \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add ", 0;\n"                                             \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " {" DLOPS_NUMBERS_##n "}, "     \
               "%" #a_ ", %" #b_ ", add, 1, 1, %" #ta ", %" #tb ";\n}"                                            \
               : DLOPS_D_##n                                                                                      \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(major_a)), "n"(int(major_b)))
#define DLOPS_WGMMA_REGISTERS(type, n, a0, a1, a2, a3, b_, add, tb)                                               \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add ", 0;\n"                                             \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " {" DLOPS_NUMBERS_##n "}, "     \
               "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ ", add, 1, 1, %" #tb ";\n}"                      \
               : DLOPS_D_##n                                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(major_b)))
// clang-format on

template <class T, int N>
constexpr bool kWgmmaShape =
    kTensorCoreType<T> && (N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256);

// d[64, N] = a[64, 16] b[16, N] (+ d if accumulate), a and b by descriptor. d is whole after wgmma_wait. Fragments:
// thread t holds rows 16 (t / 32) + t % 32 / 4 (+ 8: d[2], d[3]) and columns 8 j + 2 (t % 4) + {0, 1} in d[4 j ..]:
// 9.7.15.5.1.1.1. 9.7.15.5.2, wgmma.mma_async.
template <class T, int N, Major major_a = Major::k, Major major_b = Major::k>
DLOPS_DEVICE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate DLOPS_LOC) {
  static_assert(kWgmmaShape<T, N>);
  DLOPS_PTX(
      90a, if constexpr (std::is_same_v<T, __half>) { DLOPS_WGMMA(DLOPS_WGMMA_SHARED, f16); } else {
        DLOPS_WGMMA(DLOPS_WGMMA_SHARED, bf16);
      },
      simt::wgmma(d, {kHalf16<T>, N, a, b, nullptr, major_a == Major::mn, major_b == Major::mn, accumulate},
                  loc));
}
// The same with a in registers: warp w holds rows 16 w .. 16 w + 15, as mma_m16n8k16's.
template <class T, int N, Major major_b = Major::k>
DLOPS_DEVICE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate DLOPS_LOC) {
  static_assert(kWgmmaShape<T, N>);
  DLOPS_PTX(
      90a, if constexpr (std::is_same_v<T, __half>) { DLOPS_WGMMA(DLOPS_WGMMA_REGISTERS, f16); } else {
        DLOPS_WGMMA(DLOPS_WGMMA_REGISTERS, bf16);
      },
      simt::wgmma(d, {kHalf16<T>, N, 0, b, a, false, major_b == Major::mn, accumulate}, loc));
}

#undef DLOPS_NUMBERS_32
#undef DLOPS_NUMBERS_64
#undef DLOPS_NUMBERS_96
#undef DLOPS_NUMBERS_128
#undef DLOPS_NUMBERS_192
#undef DLOPS_NUMBERS_256
#undef DLOPS_D4
#undef DLOPS_D16
#undef DLOPS_D_32
#undef DLOPS_D_64
#undef DLOPS_D_96
#undef DLOPS_D_128
#undef DLOPS_D_192
#undef DLOPS_D_256
#undef DLOPS_WGMMA
#undef DLOPS_WGMMA_SHARED
#undef DLOPS_WGMMA_REGISTERS

// Before the first wgmma, and whenever the thread has touched accumulators or A's registers. 9.7.15.7.1, wgmma.fence.
DLOPS_DEVICE void wgmma_fence(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90a, asm volatile("wgmma.fence.sync.aligned;" :: : "memory"), simt::wgmma_fence(loc));
}
// Closes the warpgroup's group of wgmmas. 9.7.15.7.2.
DLOPS_DEVICE void wgmma_commit(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90a, asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"), simt::wgmma_commit(loc));
}
// Until all but the youngest N groups are done. 9.7.15.7.3.
template <int N>
DLOPS_DEVICE void wgmma_wait(DLOPS_LOC_ONLY) {
  DLOPS_PTX(90a, asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"),
            simt::wgmma_wait(N, loc));
}
// The same, naming accumulators that are then whole: otherwise nothing ties their use to the wait for the compiler.
template <int N, int size>
DLOPS_DEVICE void wgmma_wait([[maybe_unused]] float (&d)[size] DLOPS_LOC) {
  DLOPS_PTX(90a, wgmma_wait<N>();
            _Pragma("unroll") for (float& value : d) asm volatile("" : "+f"(value)::"memory"),
            simt::wgmma_wait(N, loc));
}

}  // namespace dlops::ptx
