// Normals in registers: written out (randn), or mixed into a sample (add_noise). Same shape as step_fused.
#pragma once
#include "cuda.cuh"

namespace dlops::diffusion {

constexpr KernelInfo kAddNoise =
    DLOPS_CUDA_KERNEL("add_noise", "diffusion", "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16",
                      "128 threads x 2 x 16 bytes", "add_noise", 0);
constexpr int kUnroll = 2;
template <class T, bool wide>
__global__ void __launch_bounds__(kRowThreads) add_noise(const AddNoiseParams p) {
  constexpr int V = kVec<T>;
  const int64_t chunks = (p.elements + V - 1) / V;
  for (int64_t n = first_row(); n < p.samples; n += row_step()) {
    const float* k = p.rows.table + 2 * row_of(p.rows, n);
    const float scale = __ldg(k), sigma = __ldg(k + 1);
    const int64_t base = n * p.elements, seed = p.seeds ? p.seeds[n] : 0;
    for (int64_t first = first_chunk(kUnroll); first < chunks; first += chunk_step(kUnroll)) {
      uint4 held[kUnroll][2];
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        const int64_t i = (first + u * blockDim.x) * V;
        held[u][0] = load(static_cast<const T*>(p.sample) + base + i, p.elements - i, wide);
        if (p.noise) held[u][1] = load(static_cast<const T*>(p.noise) + base + i, p.elements - i, wide);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        const int64_t chunk = first + u * blockDim.x, i = chunk * V;
        uint32_t out[4];
#pragma unroll
        for (int q = 0; q < kQuads<T>; q++) {
          float x[4], z[4];
          unpack_quad<T>(held[u][0], q, x);
          if (p.noise)
            unpack_quad<T>(held[u][1], q, z);
          else
            normals(seed, p.step, chunk * kQuads<T> + q, z);
#pragma unroll
          for (int j = 0; j < 4; j++) x[j] = __fmaf_rn(sigma, z[j], __fmul_rn(scale, x[j]));
          pack_quad<T>(x, q, out);
        }
        store(static_cast<T*>(p.out) + base + i, words(out), p.elements - i, wide);
      }
    }
  }
}

constexpr KernelInfo kRandn = DLOPS_CUDA_KERNEL("randn", "diffusion", "fused", "sm_75 sm_80 sm_90a",
                                                "f32 f16 bf16", "128 threads x 16 bytes", "randn", 0);
template <class T, bool wide>
__global__ void __launch_bounds__(kRowThreads) randn(const RandnParams p) {
  constexpr int V = kVec<T>;
  const int64_t chunks = (p.elements + V - 1) / V;
  for (int64_t n = first_row(); n < p.samples; n += row_step()) {
    const int64_t seed = p.seeds[n];
    for (int64_t chunk = first_chunk(1); chunk < chunks; chunk += chunk_step(1)) {
      uint32_t out[4];
#pragma unroll
      for (int q = 0; q < kQuads<T>; q++) {
        float z[4];
        normals(seed, p.step, chunk * kQuads<T> + q, z);
        pack_quad<T>(z, q, out);
      }
      store(static_cast<T*>(p.out) + n * p.elements + chunk * V, words(out), p.elements - chunk * V, wide);
    }
  }
}

constexpr KernelInfo kRandnNaive = DLOPS_CUDA_KERNEL("randn", "diffusion", "naive", "sm_75 sm_80 sm_90a",
                                                     "f32 f16 bf16", "128 elements", "randn_naive", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads) randn_naive(const RandnParams p) {
  for (int64_t i = flat_thread(); i < p.samples * p.elements; i += flat_threads())
    static_cast<T*>(p.out)[i] = static_cast<T>(normal1(p.seeds[i / p.elements], p.step, i % p.elements));
}

}  // namespace dlops::diffusion
