// wgmma on tiles that ordinary stores or a TMA load brought, with B in both majors, and a TMA store of what ordinary stores
// wrote: the places where generic and asynchronous accesses to shared memory must be ordered by hand.
#pragma once
#include "../../../csrc/cuda/mma.h"
#include "../../../csrc/cuda/tma.h"

namespace proxy {

using bf16 = __nv_bfloat16;
using dlops::Swizzle;
using dlops::ptx::Major;
constexpr int kTile = 64;  // [64, 64]

// The accumulators of m64n64 to out[64, 64].
DLOPS_DEVICE void write_tile(const float (&d)[32], float* out) {
  const int t = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 32; i++)
    out[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * kTile + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
}

// ab: [128, 64], rows 0..63 are A, 64..127 are B. out = A B^T.
__global__ void __launch_bounds__(128) stores_then_wgmma(const bf16* ab, float* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DLOPS_DYNAMIC_SHARED(unsigned char, tiles, 1024);
  for (int i = threadIdx.x; i < 2 * kTile * kTile; i += 128)
    *reinterpret_cast<bf16*>(tiles + dlops::swizzled(Swizzle::b128, 2 * i)) = ab[i];
  dlops::ptx::fence_proxy_async();
  __syncthreads();  // the tiles are written
  float d[32];
  dlops::ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++)
    dlops::ptx::wgmma<bf16, 64>(d, dlops::ptx::wgmma_descriptor(tiles + k * 32, 16, 1024, Swizzle::b128),
                                dlops::ptx::wgmma_descriptor(tiles + 8192 + k * 32, 16, 1024, Swizzle::b128),
                                k > 0);
  dlops::ptx::wgmma_commit();
  dlops::ptx::wgmma_wait<0>();
  write_tile(d, out);
#endif
}

// B lies [K, N] in memory, N contiguous, as attention's P V needs it. out = A B.
__global__ void __launch_bounds__(128) tma_then_wgmma(const __grid_constant__ CUtensorMap map_a,
                                                      const __grid_constant__ CUtensorMap map_b, float* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DLOPS_DYNAMIC_SHARED(unsigned char, tiles, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tiles + 16384);
  if (threadIdx.x == 0) {
    dlops::ptx::mbarrier_init(bar, 1);
    dlops::ptx::fence_mbarrier_init();
  }
  __syncthreads();  // the mbarrier is there
  if (threadIdx.x == 0) {
    dlops::ptx::mbarrier_arrive_expect_tx(bar, 16384);
    dlops::ptx::tma_load(tiles, &map_a, bar, {0, 0});
    dlops::ptx::tma_load(tiles + 8192, &map_b, bar, {0, 0});
  }
  dlops::ptx::mbarrier_wait(bar, 0);
  float d[32];
  dlops::ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++)
    dlops::ptx::wgmma<bf16, 64, Major::k, Major::mn>(
        d, dlops::ptx::wgmma_descriptor(tiles + k * 32, 16, 1024, Swizzle::b128),
        dlops::ptx::wgmma_descriptor(tiles + 8192 + k * 2048, 16, 1024, Swizzle::b128), k > 0);
  dlops::ptx::wgmma_commit();
  dlops::ptx::wgmma_wait<0>();
  write_tile(d, out);
#endif
}

// out = x + 1 in tiles [64, 64] down a column of them, staged through two buffers of shared memory.
__global__ void __launch_bounds__(128)
    stores_then_tma(const bf16* x, const __grid_constant__ CUtensorMap map, int tiles) {
  DLOPS_DYNAMIC_SHARED(unsigned char, buffers, 1024);
  for (int tile = 0; tile < tiles; tile++) {
    bf16* staged = reinterpret_cast<bf16*>(buffers + tile % 2 * 8192);
    if (threadIdx.x == 0) dlops::ptx::tma_store_wait_read<1>();
    __syncthreads();  // the store of two tiles ago has read this buffer
    for (int i = threadIdx.x; i < kTile * kTile; i += 128)
      staged[i] = bf16(float(x[size_t(tile) * kTile * kTile + i]) + 1.f);
    dlops::ptx::fence_proxy_async();
    __syncthreads();  // the buffer is written
    if (threadIdx.x == 0) {
      dlops::ptx::tma_store(&map, staged, {0, tile * kTile});
      dlops::ptx::tma_store_commit();
    }
  }
  if (threadIdx.x == 0) dlops::ptx::tma_store_wait<0>();
}

}  // namespace proxy
