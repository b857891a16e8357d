// wgmma in the simt runner against the models of the PTX manual: fragments, layouts in shared memory, descriptor fields.
#pragma once
#include "check.h"
#include "models.h"

namespace wgmma_checks {

using namespace dlops;
using ptx::Major;

constexpr uint32_t kImageBytes = 40 * 1024;  // of each operand

struct Inputs {
  const uint32_t *image_a, *image_b, *fragment_a;
  models::Layout a, b;
  uint32_t step_a, step_b;  // bytes from one slab of 16 along K to the next
  int steps;
};

DLOPS_DEVICE Swizzle swizzle_of(const models::Layout& l) {
  return l.span_bytes == 128  ? Swizzle::b128
         : l.span_bytes == 64 ? Swizzle::b64
         : l.span_bytes == 32 ? Swizzle::b32
                              : Swizzle::none;
}

template <class T, int N, bool registers, Major major_a, Major major_b>
__global__ void kernel(float* out, Inputs in) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  const int t = threadIdx.x;
  for (uint32_t i = t; i < kImageBytes / 4; i += 128) {
    tile[i] = in.image_a[i];
    tile[kImageBytes / 4 + i] = in.image_b[i];
  }
  ptx::fence_proxy_async();
  __syncthreads();
  float d[N / 2];
  uint32_t a[4];
  for (int i = 0; i < N / 2; i++) d[i] = 77.f;  // the first product must not add to it
  for (int i = 0; i < 4; i++) a[i] = in.fragment_a[t * 4 + i];
  ptx::wgmma_fence();
  for (int s = 0; s < in.steps; s++) {
    const uint64_t b = ptx::wgmma_descriptor(tile + (kImageBytes + s * in.step_b) / 4, 2 * in.b.lbo,
                                             2 * in.b.sbo, swizzle_of(in.b));
    if constexpr (registers) {
      ptx::wgmma<T, N, major_b>(d, a, b, s > 0);
    } else {
      const uint64_t start =
          ptx::wgmma_descriptor(tile + s * in.step_a / 4, 2 * in.a.lbo, 2 * in.a.sbo, swizzle_of(in.a));
      ptx::wgmma<T, N, major_a, major_b>(d, start, b, s > 0);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int i = 0; i < N / 2; i++) out[t * (N / 2) + i] = d[i];
}

inline int value_a(int m, int k) { return models::value(m * 64 + k, 11); }
inline int value_b(int n, int k) { return models::value(n * 64 + k, 12); }

// The operand's shared memory: element (mn, k) where the manual's table puts it; the rest would spoil any result.
template <class T, class Value>
std::vector<uint32_t> image_of(const models::Layout& l, int rows, int columns, Value value) {
  std::vector<uint32_t> image(kImageBytes / 4);
  for (uint32_t i = 0; i < kImageBytes / 2; i++) put<T>(image, i, 13);
  for (int mn = 0; mn < rows; mn++)
    for (int k = 0; k < columns; k++) {
      const uint32_t bytes = models::swizzle_b43(l.span_bytes, 2 * models::canonical(l, mn, k));
      if (bytes + 2 > kImageBytes) throw std::logic_error("the operand does not fit its image");
      put<T>(image, bytes / 2, value(mn, k));
    }
  return image;
}

template <class T, int N, bool registers, Major major_a, Major major_b>
void one(const std::string& name, const models::Layout& a, const models::Layout& b, int steps = 1,
         uint32_t step_a = 0, uint32_t step_b = 0) {
  const std::vector<uint32_t> image_a = image_of<T>(a, 64, 16 * steps, value_a);
  const std::vector<uint32_t> image_b = image_of<T>(b, N, 16 * steps, value_b);
  std::vector<uint32_t> fragment(128 * 4);
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < 8; i++) {
      const models::Place p = models::wgmma_a(t, i);
      put<T>(fragment, t * 8 + i, value_a(p.row, p.column));
    }
  std::vector<float> d(128 * N / 2);
  const Inputs in = {image_a.data(), image_b.data(), fragment.data(), a, b, step_a, step_b, steps};
  run(kernel<T, N, registers, major_a, major_b>, {dim3(1), dim3(128), 2 * kImageBytes}, d.data(), in);
  bool same = true;
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < N / 2; i++) {
      const models::Place p = models::wgmma_d(t, i);
      int sum = 0;
      for (int k = 0; k < 16 * steps; k++) sum += value_a(p.row, k) * value_b(p.column, k);
      same &= d[t * (N / 2) + i] == static_cast<float>(sum);
    }
  check(same, "wgmma " + name);
}

// A layout whose offsets are `pad` times what a dense tile of `rows` has.
inline models::Layout layout(bool mn_major, int span, uint32_t rows, uint32_t pad) {
  const uint32_t atom = 8 * static_cast<uint32_t>(span) / 2;  // elements: 8 lines of a span
  if (span == 16) {  // core matrices [8, 8], one after the other: one offset steps over MN, the other over K
    const uint32_t near = 64 * pad, far = near * (rows / 8);
    return mn_major ? models::Layout{true, span, far, near} : models::Layout{false, span, far, near};
  }
  if (!mn_major) return {false, span, 8, atom * pad};  // LBO: not used
  return {true, span, 2 * atom * pad, atom * pad};     // K = 16: two atoms, then the next span of MN
}

using bf16 = __nv_bfloat16;

template <bool mn_a, bool mn_b>
void majors() {
  constexpr Major a = mn_a ? Major::mn : Major::k, b = mn_b ? Major::mn : Major::k;
  for (const int span : {16, 32, 64, 128})
    for (const uint32_t pad : {1u, 2u}) {
      const std::string name =
          std::string(mn_a ? "A M-major, " : "A K-major, ") + (mn_b ? "B N-major, " : "B K-major, ") +
          (span == 16 ? "no" : std::to_string(span) + "-byte") + " swizzle, offsets x" + std::to_string(pad);
      one<bf16, 64, false, a, b>(name, layout(mn_a, span, 64, pad), layout(mn_b, span, 64, pad));
    }
}

// The manual's own worked layouts: figures 168 to 170, "exact layout", in elements.
inline void check_manual_examples() {
  bool same = true;
  for (uint32_t mn = 0; mn < 64; mn++)
    for (uint32_t k = 0; k < 16; k++) {
      if (mn < 16)  // ((8,1,2),(8,2)):((1,8,64),(8,128))
        same &=
            models::canonical({true, 16, 128, 64}, mn, k) == mn % 8 + mn / 8 * 64 + k % 8 * 8 + k / 8 * 128;
      if (mn < 32)  // ((8,2,2),(8,2)):((1,8,128),(16,256))
        same &= models::canonical({true, 32, 128, 256}, mn, k) ==
                mn % 8 + mn / 8 % 2 * 8 + mn / 16 * 128 + k % 8 * 16 + k / 8 * 256;
      same &= models::canonical({true, 64, 256, 512}, mn, k) ==  // ((8,4,2),(8,2)):((1,8,256),(32,512))
              mn % 8 + mn / 8 % 4 * 8 + mn / 32 * 256 + k % 8 * 32 + k / 8 * 512;
    }
  for (const int span : {16, 32, 64, 128})  // the two swizzle definitions of the manual are one
    for (uint32_t byte = 0; byte < 4096; byte++)
      same &= models::swizzle_source(span, models::swizzle_b43(span, byte)) == byte;
  check(same, "the models agree with the manual's examples");
  for (const Swizzle s : {Swizzle::none, Swizzle::b32, Swizzle::b64, Swizzle::b128})
    for (uint32_t byte = 0; byte < 4096; byte++)
      same &= swizzled(s, byte) == models::swizzle_b43(static_cast<int>(swizzle_span(s)), byte);
  check(same, "cuda/swizzle.h is the manual's swizzle");
}

__global__ void descriptor_kernel(uint64_t* out, uint32_t* address, uint32_t at, uint32_t leading,
                                  uint32_t stride, Swizzle swizzle) {
  DLOPS_DYNAMIC_SHARED(unsigned char, tile, 1024);
  *address = ptx::shared_address(tile + at);
  *out = ptx::wgmma_descriptor(tile + at, leading, stride, swizzle);
}
inline void check_descriptor() {
  bool same = true;
  for (const Swizzle s : {Swizzle::none, Swizzle::b32, Swizzle::b64, Swizzle::b128})
    for (const uint32_t at : {0u, 16u, 1024u, 65536u + 48u})
      for (const uint32_t leading : {16u, 4096u, 0x3fff0u})
        for (const uint32_t stride : {16u, 1024u, 0x3fff0u}) {
          uint64_t got = 0;
          uint32_t address = 0;
          run(descriptor_kernel, {dim3(1), dim3(1), 100 * 1024}, &got, &address, at, leading, stride, s);
          same &= got == models::descriptor(address, leading, stride, static_cast<int>(swizzle_span(s)));
        }
  check(same, "wgmma descriptor: address, leading and stride offsets, swizzle mode");
}

template <class T, int N>
void shape(const std::string& type) {
  const std::string name = "m64n" + std::to_string(N) + "k16 " + type;
  const auto k_major = layout(false, 128, N, 1), n_major = layout(true, 64, N, 1);  // spans of 32 fit every N
  one<T, N, false, Major::k, Major::k>(name + ", B K-major", layout(false, 128, 64, 1), k_major);
  one<T, N, true, Major::k, Major::k>(name + ", A in registers", layout(false, 128, 64, 1), k_major);
  one<T, N, true, Major::k, Major::mn>(name + ", A in registers, B N-major", layout(false, 128, 64, 1),
                                       n_major);
}

inline void all() {
  check_manual_examples();
  check_descriptor();
  majors<false, false>();
  majors<false, true>();
  majors<true, false>();
  majors<true, true>();
  shape<bf16, 32>("bf16");
  shape<bf16, 64>("bf16");
  shape<bf16, 96>("bf16");
  shape<bf16, 128>("bf16");
  shape<bf16, 192>("bf16");
  shape<bf16, 256>("bf16");
  shape<__half, 64>("f16");
  // Slabs along K: 32 bytes apart within a K-major tile's span, two atoms apart in an MN-major tile.
  const auto k64 = layout(false, 128, 64, 1);
  one<bf16, 64, false, Major::k, Major::k>("K = 64 in one 128-byte span", k64, k64, 4, 32, 32);
  const auto k32 = layout(false, 64, 64, 1);
  one<bf16, 64, false, Major::k, Major::k>("K = 32 in one 64-byte span", k32, k32, 2, 32, 32);
  const models::Layout mn = {true, 128, 4 * 512,
                             512};  // [K 32, MN 64]: four atoms along K, then the next span
  one<bf16, 64, false, Major::mn, Major::mn>("K = 32 by two M- and N-major atoms", mn, mn, 2, 2048, 2048);
  one<bf16, 128, false, Major::k, Major::mn>("K = 32, two spans of N", k64, mn, 2, 32, 2048);
}

}  // namespace wgmma_checks
