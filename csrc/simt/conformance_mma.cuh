// Conformance of cuda/mma.h.
#pragma once
#include "../cuda/mma.h"
#include "../cuda/vec.h"
#include "conformance.h"

namespace dlops::conformance {

using ptx::Major;

// A register of two small integers.
template <class T>
DLOPS_DEVICE uint32_t small_pair(uint32_t position, uint32_t salt) {
  const float pair[2] = {static_cast<float>(small(2 * position, salt)),
                         static_cast<float>(small(2 * position + 1, salt))};
  return pack_word<T>(pair);
}

// Rows lie 48 bytes apart, in an order of their own; lanes whose address is not used bring a valid one.
template <int N>
DLOPS_DEVICE uint32_t row_of(int lane) {
  return static_cast<uint32_t>(lane % (8 * N) * 5 % (8 * N)) * 48;
}

template <int N, bool transpose>
__global__ void ldmatrix_kernel(uint32_t* out) {
  DLOPS_DYNAMIC_SHARED(uint16_t, tile, 16);  // [8 N][24]
  const int lane = threadIdx.x;
  for (int i = lane; i < 8 * N * 24; i += 32) tile[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t r[N];
  if constexpr (transpose)
    ptx::ldmatrix_trans(r, ptx::shared_address(tile) + row_of<N>(lane));
  else
    ptx::ldmatrix(r, ptx::shared_address(tile) + row_of<N>(lane));
  for (int i = 0; i < N; i++) out[i * 32 + lane] = r[i];
}

template <int N, bool transpose>
__global__ void stmatrix_kernel(uint16_t* out) {
  DLOPS_DYNAMIC_SHARED(uint16_t, tile, 16);  // [8 N][24]
  const int lane = threadIdx.x;
  for (int i = lane; i < 8 * N * 24; i += 32) tile[i] = 0xabcd;
  __syncwarp();
  uint32_t r[N];
  for (int i = 0; i < N; i++) r[i] = 0x10000u * (2 * (i * 32 + lane) + 1) + 2 * (i * 32 + lane);
  if constexpr (transpose)
    ptx::stmatrix_trans(r, ptx::shared_address(tile) + row_of<N>(lane));
  else
    ptx::stmatrix(r, ptx::shared_address(tile) + row_of<N>(lane));
  __syncwarp();
  for (int i = lane; i < 8 * N * 24; i += 32) out[i] = tile[i];
}

template <class T>
__global__ void mma_kernel(float* out) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; i++) a[i] = small_pair<T>(lane * 4 + i, 1), d[i] = 1000.f * (lane * 4 + i);
  for (int i = 0; i < 2; i++) b[i] = small_pair<T>(lane * 2 + i, 2);
  ptx::mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; i++) out[lane * 4 + i] = d[i];
}

// Shared memory is small integers by position; A's and B's descriptors take them in any layout. d = A B, then
// d += A' B', with A' and B' a step along K further on.
struct Operand {
  uint32_t leading, stride, step;  // bytes
};
struct Operands {
  Operand a, b;
  Swizzle swizzle;
};
constexpr int kOperandBytes = 32 * 1024;  // of each

template <class T>
DLOPS_DEVICE void fill_operands(uint32_t* tile) {
  for (int i = threadIdx.x; i < 2 * kOperandBytes / 4; i += 128) tile[i] = small_pair<T>(i, 3);
  ptx::fence_proxy_async();
  __syncthreads();
}
DLOPS_DEVICE uint64_t descriptor(const uint32_t* tile, const Operand& o, int step, Swizzle swizzle) {
  return ptx::wgmma_descriptor(tile + step * o.step / 4, o.leading, o.stride, swizzle);
}

template <class T, int N, bool registers, Major major_a, Major major_b>
__global__ void __launch_bounds__(128) wgmma_kernel(float* out, Operands o) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  const int t = threadIdx.x;
  fill_operands<T>(tile);
  float d[N / 2];
  for (int i = 0; i < N / 2; i++) d[i] = 100.f * t;
  uint32_t a[2][4];
  for (int i = 0; i < 8; i++) a[i / 4][i % 4] = small_pair<T>(t * 8 + i, 4);
  for (int step = 0; step < 2; step++) {
    const uint64_t b = descriptor(tile + kOperandBytes / 4, o.b, step, o.swizzle);
    ptx::wgmma_fence();
    if constexpr (registers)
      ptx::wgmma<T, N, major_b>(d, a[step], b, step == 1);
    else
      ptx::wgmma<T, N, major_a, major_b>(d, descriptor(tile, o.a, step, o.swizzle), b, step == 1);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; i++) out[t * N + step * N / 2 + i] = d[i];
  }
}

// Two groups at once; the first is waited for while the second runs.
__global__ void __launch_bounds__(128) wgmma_groups_kernel(float* out, Operands o) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  fill_operands<__nv_bfloat16>(tile);
  float d[2][16] = {};
  ptx::wgmma_fence();
  for (int step = 0; step < 2; step++) {
    ptx::wgmma<__nv_bfloat16, 32>(d[step], descriptor(tile, o.a, step, o.swizzle),
                                  descriptor(tile + kOperandBytes / 4, o.b, step, o.swizzle), false);
    ptx::wgmma_commit();
  }
  ptx::wgmma_wait<1>(d[0]);
  for (int i = 0; i < 16; i++) out[threadIdx.x * 32 + i] = d[0][i];
  ptx::wgmma_wait<0>(d[1]);
  for (int i = 0; i < 16; i++) out[threadIdx.x * 32 + 16 + i] = d[1][i];
}

// Each field alone, the start address counted from the tile's.
__global__ void descriptor_kernel(uint64_t* out) {
  DLOPS_DYNAMIC_SHARED(unsigned char, tile, 1024);
  const uint64_t base = (ptx::shared_address(tile) & 0x3ffff) >> 4;
  out[0] = ptx::wgmma_descriptor(tile + 48, 0, 0, Swizzle::none) - base;
  out[1] = ptx::wgmma_descriptor(tile, 0x3210, 0, Swizzle::none) - base;
  out[2] = ptx::wgmma_descriptor(tile, 0, 0x3210, Swizzle::none) - base;
  for (uint32_t s = 1; s <= 3; s++)
    out[2 + s] = ptx::wgmma_descriptor(tile, 0, 0, static_cast<Swizzle>(s)) - base;
}

template <int N, bool transpose>
void add_matrix_moves(std::vector<Case>& cases) {
  const std::string suffix = transpose ? "_trans" : "", x = "_x" + std::to_string(N);
  const size_t bytes = 8 * N * 48;
  cases.push_back({"ldmatrix" + suffix + x, {"ldmatrix" + suffix}, 75, [=] {
                     return output_of(ldmatrix_kernel<N, transpose>, {dim3(1), dim3(32), bytes}, 32 * N);
                   }});
  cases.push_back({"stmatrix" + suffix + x, {"stmatrix" + suffix}, 90, [=] {
                     return output_of(stmatrix_kernel<N, transpose>, {dim3(1), dim3(32), bytes}, 8 * N * 24);
                   }});
}

const std::vector<std::string> kWgmmaWrappers = {"wgmma", "wgmma_descriptor", "wgmma_fence", "wgmma_commit",
                                                 "wgmma_wait"};

// A dense tile of `rows` of M or N; without swizzle the pitches are padded, so that no two of them are alike.
inline Operand operand(Major major, Swizzle swizzle, uint32_t rows) {
  const uint32_t atom = 8 * swizzle_span(swizzle);
  if (swizzle == Swizzle::none && major == Major::k) return {128, 384, 256};
  if (swizzle == Swizzle::none) return {(rows / 8 + 1) * 128, 128, (rows / 8 + 1) * 256};
  if (major == Major::k) return {16, atom, swizzle == Swizzle::b32 ? atom : 32};
  return {2 * atom, atom, 2 * atom};
}

template <class T, int N, bool registers, Major major_a, Major major_b>
void add_wgmma(std::vector<Case>& cases, const std::string& name, Swizzle swizzle) {
  const Operands o = {operand(major_a, swizzle, 64), operand(major_b, swizzle, N), swizzle};
  cases.push_back({name, kWgmmaWrappers, 90, [o] {
                     return output_of(wgmma_kernel<T, N, registers, major_a, major_b>,
                                      {dim3(1), dim3(128), 2 * kOperandBytes}, 128 * N, o);
                   }});
}

std::vector<Case> matrix_cases() {
  std::vector<Case> cases;
  add_matrix_moves<1, false>(cases), add_matrix_moves<2, false>(cases), add_matrix_moves<4, false>(cases);
  add_matrix_moves<1, true>(cases), add_matrix_moves<2, true>(cases), add_matrix_moves<4, true>(cases);
  cases.push_back({"mma_bf16", {"mma_m16n8k16"}, 80, [] {
                     return output_of(mma_kernel<__nv_bfloat16>, {dim3(1), dim3(32)}, 128);
                   }});
  cases.push_back({"mma_f16", {"mma_m16n8k16"}, 80, [] {
                     return output_of(mma_kernel<__half>, {dim3(1), dim3(32)}, 128);
                   }});
  cases.push_back({"wgmma_descriptor", {"wgmma_descriptor"}, 75, [] {
                     return output_of(descriptor_kernel, {dim3(1), dim3(1), 64}, 6);
                   }});
  using bf16 = __nv_bfloat16;
  constexpr Major k = Major::k, mn = Major::mn;
  const Swizzle swizzles[] = {Swizzle::none, Swizzle::b32, Swizzle::b64, Swizzle::b128};
  for (const Swizzle s : swizzles) {
    const std::string span = s == Swizzle::none ? "_none" : "_" + std::to_string(swizzle_span(s)) + "b";
    add_wgmma<bf16, 64, false, k, k>(cases, "wgmma_n64_k_k" + span, s);
    add_wgmma<bf16, 64, false, k, mn>(cases, "wgmma_n64_k_mn" + span, s);
    add_wgmma<bf16, 64, false, mn, k>(cases, "wgmma_n64_mn_k" + span, s);
    add_wgmma<bf16, 64, true, k, mn>(cases, "wgmma_n64_registers_mn" + span, s);
  }
  cases.push_back({"wgmma_groups", kWgmmaWrappers, 90, [] {
                     const Operand o = operand(k, Swizzle::b128, 64);
                     return output_of(wgmma_groups_kernel, {dim3(1), dim3(128), 2 * kOperandBytes}, 128 * 32,
                                      Operands{o, o, Swizzle::b128});
                   }});
  add_wgmma<__half, 64, false, k, k>(cases, "wgmma_f16", Swizzle::b128);
  add_wgmma<__half, 64, true, k, k>(cases, "wgmma_f16_registers", Swizzle::b128);
  add_wgmma<bf16, 32, false, k, k>(cases, "wgmma_n32", Swizzle::b128);
  add_wgmma<bf16, 96, false, k, k>(cases, "wgmma_n96", Swizzle::b128);
  add_wgmma<bf16, 128, false, k, mn>(cases, "wgmma_n128", Swizzle::b128);
  add_wgmma<bf16, 192, false, k, k>(cases, "wgmma_n192", Swizzle::b128);
  add_wgmma<bf16, 256, false, k, k>(cases, "wgmma_n256", Swizzle::b128);
  return cases;
}

}  // namespace dlops::conformance
