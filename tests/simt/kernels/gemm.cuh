// C[M, N] = A[M, K] B[N, K]^T for sm_90a, bfloat16: TMA into a ring of stages, mbarriers, one producer warpgroup and two
// consumers with wgmma. A test of the runner, not a kernel of the package.
#pragma once
#include "../../../csrc/cuda/mma.h"
#include "../../../csrc/cuda/tma.h"

namespace gemm {

using bf16 = __nv_bfloat16;
using dlops::Swizzle;
constexpr int kM = 128, kN = 128, kK = 64, kStages = 4, kConsumers = 2, kThreads = 128 * (1 + kConsumers);
constexpr int kBytesA = kM * kK * 2, kBytesB = kN * kK * 2;  // one stage
constexpr size_t kSharedBytes = kStages * (kBytesA + kBytesB) + 2 * kStages * 8;

// One thread asks for every tile. full[s]: stage s has landed; empty[s]: its consumers are done with it.
DLOPS_DEVICE void produce(unsigned char* a, unsigned char* b, uint64_t* full, uint64_t* empty,
                          const CUtensorMap* map_a, const CUtensorMap* map_b, int m0, int n0, int steps) {
  for (int i = 0; i < steps; i++) {
    const int s = i % kStages, round = i / kStages;
    dlops::ptx::mbarrier_wait(empty + s, (round & 1) ^ 1);  // the first round finds every stage free
    dlops::ptx::mbarrier_arrive_expect_tx(full + s, kBytesA + kBytesB);
    dlops::ptx::tma_load(a + s * kBytesA, map_a, full + s, {i * kK, m0});
    dlops::ptx::tma_load(b + s * kBytesB, map_b, full + s, {i * kK, n0});
  }
}

// A warpgroup owns 64 rows: d[64, kN].
DLOPS_DEVICE void consume(float (&d)[kN / 2], unsigned char* a, unsigned char* b, uint64_t* full,
                          uint64_t* empty, int steps) {
  for (int i = 0; i < steps; i++) {
    const int s = i % kStages, round = i / kStages;
    dlops::ptx::mbarrier_wait(full + s, round & 1);
    dlops::ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kK / 16; k++) {
      const uint64_t da = dlops::ptx::wgmma_descriptor(a + s * kBytesA + k * 32, 16, 1024, Swizzle::b128);
      const uint64_t db = dlops::ptx::wgmma_descriptor(b + s * kBytesB + k * 32, 16, 1024, Swizzle::b128);
      dlops::ptx::wgmma<bf16, kN>(d, da, db, true);
    }
    dlops::ptx::wgmma_commit();
    dlops::ptx::wgmma_wait<1>();  // the step before is done: its stage is free
    if (i > 0 && threadIdx.x % 128 == 0) dlops::ptx::mbarrier_arrive(empty + (i - 1) % kStages);
  }
  dlops::ptx::wgmma_wait<0>();
}

__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* out,
           int m, int n, int k) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DLOPS_DYNAMIC_SHARED(unsigned char, tiles, 1024);
  unsigned char* a = tiles;                      // [kStages, kM, kK]
  unsigned char* b = tiles + kStages * kBytesA;  // [kStages, kN, kK]
  uint64_t* full = reinterpret_cast<uint64_t*>(tiles + kStages * (kBytesA + kBytesB));
  uint64_t* empty = full + kStages;
  const int group = threadIdx.x / 128, m0 = blockIdx.y * kM, n0 = blockIdx.x * kN, steps = (k + kK - 1) / kK;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      dlops::ptx::mbarrier_init(full + s, 1);
      dlops::ptx::mbarrier_init(empty + s, kConsumers);
    }
    dlops::ptx::fence_mbarrier_init();
  }
  __syncthreads();  // the mbarriers are there

  if (group == 0) {
    dlops::ptx::reg_dealloc<40>();
    if (threadIdx.x == 0) produce(a, b, full, empty, &map_a, &map_b, m0, n0, steps);
    return;
  }
  dlops::ptx::reg_alloc<232>();
  const int consumer = group - 1, t = threadIdx.x % 128;
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; i++) d[i] = 0.f;
  consume(d, a + consumer * 64 * kK * 2, b, full, empty, steps);
  const int row = m0 + consumer * 64 + t / 32 * 16 + t % 32 / 4, column = n0 + t % 4 * 2;
#pragma unroll
  for (int j = 0; j < kN / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = row + i / 2 * 8, c = column + j * 8 + i % 2;
      if (r < m && c < n) out[size_t(r) * n + c] = d[j * 4 + i];
    }
#endif
}

inline cudaError_t launch(const bf16* a, const bf16* b, float* out, uint64_t m, uint64_t n, uint64_t k,
                          cudaStream_t stream = nullptr) {
  CUtensorMap map_a, map_b;
  cudaError_t error = dlops::tensor_map<bf16, 2>(&map_a, a, {k, m}, {2 * k}, {kK, kM}, Swizzle::b128);
  if (error == cudaSuccess)
    error = dlops::tensor_map<bf16, 2>(&map_b, b, {k, n}, {2 * k}, {kK, kN}, Swizzle::b128);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned((n + kN - 1) / kN), unsigned((m + kM - 1) / kM));
  return dlops::launch(kernel, {grid, dim3(kThreads), kSharedBytes, stream}, map_a, map_b, out, int(m),
                       int(n), int(k));
}

}  // namespace gemm
