// Conformance of cuda/ptx.h and grid_sync.h.
#pragma once
#include "../cuda/grid_sync.h"
#include "../cuda/ptx.h"
#include "conformance.h"

namespace dlops::conformance {

__global__ void load_once_kernel(uint32_t* out, const uint32_t* in) {
  const uint4 v = ptx::load_once(reinterpret_cast<const uint4*>(in) + threadIdx.x);
  out[4 * threadIdx.x] = v.x, out[4 * threadIdx.x + 1] = v.y;
  out[4 * threadIdx.x + 2] = v.z, out[4 * threadIdx.x + 3] = v.w;
}

__global__ void shared_address_kernel(uint32_t* out) {
  DLOPS_SHARED(uint32_t, tile, [64]);
  out[threadIdx.x] = ptx::shared_address(tile + threadIdx.x) - ptx::shared_address(tile);
}

// Two groups: the even threads' second copy is not valid. Each thread writes what it fetched, after its own wait.
template <int bytes>
__global__ void cp_async_kernel(uint32_t* out, const uint32_t* in) {
  constexpr int words = bytes / 4;
  DLOPS_SHARED(uint4, tile, [64]);  // [2][32] slots of 16 bytes
  const int t = threadIdx.x;
  uint32_t* first = reinterpret_cast<uint32_t*>(tile + t);
  uint32_t* second = reinterpret_cast<uint32_t*>(tile + 32 + t);
  for (int i = 0; i < 4; i++) first[i] = second[i] = 0x5a5a5a5au;
  ptx::cp_async<bytes>(first, in + t * words, true);
  ptx::cp_async_commit();
  ptx::cp_async<bytes>(second, in + (31 - t) * words, t % 2 == 1);
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  for (int i = 0; i < 4; i++) out[t * 8 + i] = first[i];
  ptx::cp_async_wait<0>();
  for (int i = 0; i < 4; i++) out[t * 8 + 4 + i] = second[i];
}

// Warps 0 and 1 write and arrive at barrier 1; warps 2 and 3 wait there for all four, then meet at barrier 2 alone.
__global__ void named_barrier_kernel(int* out) {
  DLOPS_SHARED(int, tile, [128]);
  const int t = threadIdx.x;
  if (t < 64) {
    tile[t] = 3 * t + 1;
    ptx::bar_arrive(1, 128);
  } else {
    ptx::bar_sync(1, 128);
    tile[t] = tile[127 - t] + 1000;
    ptx::bar_sync(2, 64);
    out[t - 64] = tile[191 - t];
  }
  __syncthreads();  // no thread exits before the last barrier
}

// Warp 0 hands 8 values to warp 1 through a ring of 2 slots: each slot's two barriers change phase 4 times.
__global__ void mbarrier_kernel(int* out) {
  constexpr int slots = 2, turns = 8;
  DLOPS_SHARED(uint64_t, full, [slots]);
  DLOPS_SHARED(uint64_t, empty, [slots]);
  DLOPS_SHARED(int, ring, [slots * 32]);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < slots; s++) {
      ptx::mbarrier_init(full + s, 32);
      ptx::mbarrier_init(empty + s, 32);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  for (int i = 0; i < turns; i++) {
    const int s = i % slots;
    const uint32_t parity = i / slots % 2;
    if (threadIdx.x < 32) {
      ptx::mbarrier_wait(empty + s, parity ^ 1);
      ring[s * 32 + lane] = 100 * i + lane;
      ptx::mbarrier_arrive(full + s);
    } else {
      ptx::mbarrier_wait(full + s, parity);
      out[i * 32 + lane] = ring[s * 32 + 31 - lane];
      ptx::mbarrier_arrive(empty + s);
    }
  }
}

// Each block of a cluster of 4 reads its neighbours' shared memory.
__global__ void cluster_kernel(int* out) {
  DLOPS_SHARED(int, tile, [32]);
  const uint32_t rank = ptx::cluster_rank();
  const int t = threadIdx.x;
  tile[t] = 100 * static_cast<int>(blockIdx.x) + t;
  ptx::cluster_sync();
  int* mine = out + blockIdx.x * 96;
  mine[t] = static_cast<int>(rank);
  mine[32 + t] = ptx::cluster_map(tile, (rank + 1) % 4)[31 - t];
  mine[64 + t] = *ptx::cluster_map(tile + t, rank ^ 2);
  ptx::cluster_sync();  // nobody exits while its memory is read
}

__global__ void grid_sync_kernel(int* out) {
  const int t = threadIdx.x, b = blockIdx.x, blocks = gridDim.x, n = blockDim.x;
  out[b * n + t] = 10 * b + t;
  ptx::grid_sync();
  const int other = out[(blocks - 1 - b) * n + (n - 1 - t)];
  ptx::grid_sync();
  out[b * n + t] += 1000 * other;
}

// Three warpgroups of 168 registers a thread: one gives up 128 of them to the other two, 64 each.
__global__ void __launch_bounds__(384, 1) registers_kernel(int* out) {
  if (threadIdx.x < 128) {
    ptx::reg_dealloc<40>();
    out[threadIdx.x] = 1;
  } else {
    ptx::reg_alloc<232>();
    out[threadIdx.x] = 2;
  }
}

inline std::vector<uint32_t> counted(int n) {
  std::vector<uint32_t> values(n);
  for (int i = 0; i < n; i++) values[i] = 0x10001u * (i + 1);
  return values;
}

template <int bytes>
Bytes cp_async_output() {
  Buffer<uint32_t> in(counted(32 * bytes / 4));
  return output_of(cp_async_kernel<bytes>, {dim3(1), dim3(32)}, 32 * 8, in.data());
}

std::vector<Case> synchronisation_cases() {
  const std::vector<std::string> copies = {"cp_async", "cp_async_commit", "cp_async_wait"};
  Launch cluster = {dim3(8), dim3(32)}, cooperative = {dim3(4), dim3(64)};
  cluster.cluster = dim3(4);
  cooperative.cooperative = true;
  return {
      {"load_once",
       {"load_once"},
       75,
       [] {
         Buffer<uint32_t> in(counted(128));
         return output_of(load_once_kernel, {dim3(1), dim3(32)}, 128, in.data());
       }},
      {"shared_address",
       {"shared_address"},
       75,
       [] { return output_of(shared_address_kernel, {dim3(1), dim3(64)}, 64); }},
      {"cp_async_4", copies, 80, cp_async_output<4>},
      {"cp_async_8", copies, 80, cp_async_output<8>},
      {"cp_async_16", copies, 80, cp_async_output<16>},
      {"named_barriers",
       {"bar_sync", "bar_arrive"},
       75,
       [] { return output_of(named_barrier_kernel, {dim3(1), dim3(128)}, 64); }},
      {"mbarrier_phases",
       {"mbarrier_init", "fence_mbarrier_init", "mbarrier_arrive", "mbarrier_wait"},
       90,
       [] { return output_of(mbarrier_kernel, {dim3(1), dim3(64)}, 8 * 32); }},
      {"cluster",
       {"cluster_sync", "cluster_rank", "cluster_map"},
       90,
       [cluster] { return output_of(cluster_kernel, cluster, 8 * 96); }},
      {"grid_sync",
       {"grid_sync"},
       75,
       [cooperative] { return output_of(grid_sync_kernel, cooperative, 4 * 64); }},
      {"setmaxnreg",
       {"reg_alloc", "reg_dealloc"},
       90,
       [] { return output_of(registers_kernel, {dim3(1), dim3(384)}, 384); }},
  };
}

}  // namespace dlops::conformance
