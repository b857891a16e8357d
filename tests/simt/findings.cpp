// One kernel per finding: `simt_findings NAME` launches it. Exit code 2 and a message, as program.h says; 0 where this build
// cannot see it (races need the race build).
#include <cstring>

#include "../../csrc/cuda/mma.h"
#include "../../csrc/cuda/tma.h"
#include "program.h"

namespace ptx = dlops::ptx;
using dlops::Launch;

__global__ void exits_early(float* y) {
  if (threadIdx.x == 37) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void diverges(float* y) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void barrier_count(float* y) {
  for (unsigned i = 0; i <= threadIdx.x / 32; i++) __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void half_a_warp(float* y) {
  float v = 1;
  if (threadIdx.x % 32 < 16) v = __shfl_sync(~0u, v, 0);
  y[threadIdx.x] = v;
}
__global__ void two_collectives(float* y) {
  y[threadIdx.x] = threadIdx.x % 2 ? __ballot_sync(~0u, true) : __shfl_sync(~0u, 5u, 0);
}
__global__ void not_in_mask(float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1); }
__global__ void source_not_in_mask(float* y) {
  if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 20);
}
__global__ void lane_returned(float* y) {
  if (threadIdx.x == 5) return;
  y[threadIdx.x] = __shfl_sync(~0u, 1.f, 0);
}
__global__ void trap(float*) {
  if (threadIdx.x == 3) __trap();
}

__global__ void overlapping_masks(float* y) {
  if (threadIdx.x % 32 < 8) y[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 0);
  if (threadIdx.x % 32 >= 8 && threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(0xfffeu, 1.f, 1);
}
__global__ void half_then_whole(float* y) {  // right: lanes 16 and up meet while the others wait for all
  float v = float(threadIdx.x);
  if (threadIdx.x % 32 >= 16) v = __shfl_xor_sync(0xffff0000u, v, 1);
  y[threadIdx.x] = __shfl_sync(~0u, v, 0);
}
__global__ void xor_across_segments(float* y) {  // lanes 16 and up read the segment before theirs
  const int lane = threadIdx.x % 32, from = __shfl_xor_sync(~0u, lane, 16, 16);
  if (from != (lane < 16 ? lane : lane - 16)) __trap();
  y[threadIdx.x] = float(from);
}
__global__ void partial_warp(float* y) {  // 48 threads
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  ptx::mma_m16n8k16<__half>(d, a, b);
  y[threadIdx.x] = d[0];
}

// ---- shared memory ----

__global__ void writes_past_the_end(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x + 1];
}
__global__ void reads_past_the_end(float* y) {
  DLOPS_SHARED(float, values, [64]);
  values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x + 1];
}
__global__ void reads_unwritten(float* y) {
  DLOPS_SHARED(float, values, [64]);
  y[threadIdx.x] = values[threadIdx.x];
}
__global__ void no_syncwarp(float* y) {
  DLOPS_SHARED(float, values, [64]);
  values[threadIdx.x] = float(threadIdx.x);
  y[threadIdx.x] = values[threadIdx.x & ~31u];
}
__global__ void syncwarp(float* y) {  // the same, right
  DLOPS_SHARED(float, values, [64]);
  values[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  y[threadIdx.x] = values[threadIdx.x & ~31u];
}
__global__ void bytes_side_by_side(float* y) {  // right: neighbours share words, not bytes
  DLOPS_SHARED(unsigned char, values, [64]);
  values[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = values[63 - threadIdx.x];
}
__global__ void atomic_then_read(float* y) {
  DLOPS_SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  y[threadIdx.x] = float(count[0]);
}
__global__ void atomics_then_one_reads(float* y) {
  DLOPS_SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  if (threadIdx.x == 63) y[0] = float(count[0]);
}
__global__ void neighbour_returned(float* y) {  // a cluster of 2
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  const float* peer = ptx::cluster_map(values, ptx::cluster_rank() ^ 1);
  values[threadIdx.x] = 1;
  ptx::cluster_sync();
  y[threadIdx.x] = peer[threadIdx.x];
}
__global__ void same_layout(
    float* y) {  // a cluster of 2; right: only rank 0 has `first`, `second` lies alike in both
  if (ptx::cluster_rank() == 0) {
    DLOPS_SHARED(float, first, [64]);
    first[threadIdx.x] = 1;
  }
  DLOPS_SHARED(float, second, [64]);
  second[threadIdx.x] = float(threadIdx.x);
  ptx::cluster_sync();
  y[threadIdx.x] = ptx::cluster_map(second, ptx::cluster_rank() ^ 1)[threadIdx.x];
  ptx::cluster_sync();
}
__global__ void reads_past_the_tensor(float* y) {  // global memory: the address sanitizer's
  y[threadIdx.x] = y[128 + threadIdx.x];
}

// ---- instructions ----

__global__ void ldmatrix_outside(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  values[threadIdx.x] = 0;
  __syncthreads();
  uint32_t r[4];
  ptx::ldmatrix(r, ptx::shared_address(values) + threadIdx.x * 16);
  y[threadIdx.x] = float(r[0]);
}
__global__ void ldmatrix_unaligned(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  values[threadIdx.x] = 0;
  __syncthreads();
  uint32_t r[1];
  ptx::ldmatrix(r, ptx::shared_address(values) + threadIdx.x % 8 * 8);
  y[threadIdx.x] = float(r[0]);
}
__global__ void copy_unaligned(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  ptx::cp_async<16>(values, y + 1, true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
__global__ void copy_not_awaited(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  ptx::cp_async<4>(values + threadIdx.x, y + threadIdx.x, true);
  ptx::cp_async_commit();
  y[threadIdx.x] = values[threadIdx.x];
}
__global__ void mbarrier_uninitialised(float*) {
  DLOPS_SHARED(uint64_t, bar, [1]);
  ptx::mbarrier_arrive(bar);
}
__global__ void too_many_arrivals(float*) {
  DLOPS_SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) ptx::mbarrier_init(bar, 1);
  __syncthreads();
  ptx::mbarrier_arrive_expect_tx(bar, 64);
}
__global__ void arrival_missing(float*) {
  DLOPS_SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) ptx::mbarrier_init(bar, 65);
  __syncthreads();
  ptx::mbarrier_arrive(bar);
  ptx::mbarrier_wait(bar, 0);
}
__global__ void bytes_outstanding(float*) {
  DLOPS_SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::mbarrier_arrive_expect_tx(bar, 64);
  }
}
__global__ void named_barrier_counts(float*) {
  if (threadIdx.x < 32)
    ptx::bar_sync(1, 64);
  else
    ptx::bar_sync(1, 32);
}
__global__ void grid_sync_alone(float*) { dlops::simt::grid_sync(dlops::simt::Loc()); }
__global__ void rank_outside(float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  y[threadIdx.x] = *ptx::cluster_map(values, 2);
}
__global__ void wgmma_without_warpgroup(float*) { ptx::wgmma_fence(); }

// ---- tensor copies ----

__global__ void load_without_expect(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tile + 64);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    ptx::tma_load(tile, &map, bar, {0, 0});
    ptx::mbarrier_wait(bar, 0);
  }
}
__global__ void load_without_fence(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tile + 64);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::tma_load(tile, &map, bar, {0, 0});
    ptx::mbarrier_wait(bar, 0);
  }
}
__global__ void load_not_awaited(float* y, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tile + 64);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::tma_load(tile, &map, bar, {0, 0});
    y[0] = tile[0];
  }
}
__global__ void load_unaligned(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 16);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tile + 68);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::tma_load(tile + 4, &map, bar, {0, 0});
    ptx::mbarrier_wait(bar, 0);
  }
}
__global__ void store_without_proxy_fence(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  tile[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::tma_store(&map, tile, {0, 0});
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
}

__global__ void load_in_flight(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tile + 64);
  if (threadIdx.x == 63) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::tma_load(tile, &map, bar, {0, 0});
  }
}
__global__ void store_overwritten(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 64; i++) tile[i] = 1;
    ptx::fence_proxy_async();
    ptx::tma_store(&map, tile, {0, 0});
    ptx::tma_store_commit();
    tile[0] = 2;
    ptx::fence_proxy_async();
    ptx::tma_store_wait<0>();
  }
}
__global__ void fence_after_arrival(float*, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(float, tile, 1024);
  if (threadIdx.x >= 32) {
    tile[threadIdx.x - 32] = tile[threadIdx.x] = 1;
    ptx::bar_arrive(1, 64);
    ptx::fence_proxy_async();
  } else {
    ptx::bar_sync(1, 64);
    if (threadIdx.x == 0) {
      ptx::tma_store(&map, tile, {0, 0});
      ptx::tma_store_commit();
      ptx::tma_store_wait<0>();
    }
  }
}

// ---- wgmma, 128 threads: out = A B^T with both of them [64, 64], 128-byte swizzled ----

DLOPS_DEVICE void multiply(const unsigned char* tiles, float (&d)[32]) {
  ptx::wgmma_fence();
  for (int k = 0; k < 4; k++)
    ptx::wgmma<__half, 64>(d, ptx::wgmma_descriptor(tiles + k * 32, 16, 1024, dlops::Swizzle::b128),
                           ptx::wgmma_descriptor(tiles + 8192 + k * 32, 16, 1024, dlops::Swizzle::b128),
                           k > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
}
__global__ void own_rows_of_a(
    float* y) {  // right: a warp writes its 16 rows of A, and nobody else reads them
  DLOPS_DYNAMIC_SHARED(unsigned char, tiles, 1024);
  for (int i = threadIdx.x; i < 2048; i += 128) reinterpret_cast<uint32_t*>(tiles + 8192)[i] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  for (int i = threadIdx.x % 32; i < 512; i += 32)
    reinterpret_cast<uint32_t*>(tiles + threadIdx.x / 32 * 2048)[i] = 0;
  ptx::fence_proxy_async();
  __syncwarp();
  float d[32];
  multiply(tiles, d);
  y[threadIdx.x % 64] = d[0];
}
__global__ void one_warp_waited(float* y, const __grid_constant__ CUtensorMap map) {
  DLOPS_DYNAMIC_SHARED(unsigned char, tiles, 1024);
  uint64_t* bar = reinterpret_cast<uint64_t*>(tiles + 16384);
  for (int i = threadIdx.x; i < 4096; i += 128) reinterpret_cast<uint32_t*>(tiles)[i] = 0;
  ptx::fence_proxy_async();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::tma_load(tiles + 8192, &map, bar, {0, 0});  // B, which every warp reads
  }
  if (threadIdx.x / 32 == 0) ptx::mbarrier_wait(bar, 0);
  float d[32];
  multiply(tiles, d);
  y[threadIdx.x % 64] = d[0];
}

static std::vector<float> y(128);

// Both take 64 threads and some dynamic shared memory; the second kind a tensor map of y as [8, 8].
struct Shape { int blocks = 1, threads = 64, smem = 256, cluster = 1; };
static void run(void (*kernel)(float*), Shape s = {}) {
  must(dlops::launch(kernel, {dim3(s.blocks), dim3(s.threads), size_t(s.smem), nullptr, dim3(s.cluster)},
                     y.data()));
}
static void run(void (*kernel)(float*, CUtensorMap), Shape s = {1, 64, 512, 1}) {
  CUtensorMap map;
  must(dlops::tensor_map<float, 2>(&map, y.data(), {8, 8}, {32}, {8, 8}, dlops::Swizzle::none));
  must(dlops::launch(kernel, {dim3(s.blocks), dim3(s.threads), size_t(s.smem)}, y.data(), map));
}
static void run(void (*refused)()) { refused(); }

static void too_many_threads() { must(dlops::launch(trap, {dim3(1), dim3(1025)}, y.data())); }
static void too_much_shared() { must(dlops::launch(trap, {dim3(1), dim3(32), 228 * 1024}, y.data())); }
static void cluster_does_not_divide() {
  must(dlops::launch(trap, {dim3(3), dim3(32), 0, nullptr, dim3(2)}, y.data()));
}
static void empty_grid() { must(dlops::launch(trap, {dim3(0), dim3(32)}, y.data())); }

// clang-format off
#define CASE(kernel, ...) {#kernel, [] { run(kernel __VA_OPT__(, ) __VA_ARGS__); }}
static const struct {
  const char* name;
  void (*run)();
} kCases[] = {
  CASE(exits_early), CASE(diverges), CASE(barrier_count), CASE(half_a_warp), CASE(two_collectives),
  CASE(not_in_mask), CASE(source_not_in_mask), CASE(lane_returned), CASE(trap), CASE(writes_past_the_end),
  CASE(reads_past_the_end), CASE(reads_unwritten), CASE(no_syncwarp), CASE(syncwarp),
  CASE(bytes_side_by_side), CASE(atomic_then_read), CASE(reads_past_the_tensor), CASE(ldmatrix_outside),
  CASE(ldmatrix_unaligned), CASE(copy_unaligned), CASE(copy_not_awaited), CASE(mbarrier_uninitialised),
  CASE(too_many_arrivals), CASE(arrival_missing), CASE(bytes_outstanding), CASE(named_barrier_counts),
  CASE(grid_sync_alone), CASE(rank_outside), CASE(wgmma_without_warpgroup), CASE(load_without_expect),
  CASE(load_without_fence), CASE(load_not_awaited), CASE(load_unaligned), CASE(store_without_proxy_fence),
  CASE(too_many_threads), CASE(too_much_shared), CASE(cluster_does_not_divide), CASE(empty_grid),
  CASE(overlapping_masks), CASE(half_then_whole), CASE(xor_across_segments), CASE(partial_warp, {1, 48}),
  CASE(atomics_then_one_reads), CASE(neighbour_returned, {2, 64, 256, 2}), CASE(same_layout, {2, 64, 256, 2}),
  CASE(load_in_flight), CASE(store_overwritten), CASE(fence_after_arrival), CASE(own_rows_of_a, {1, 128,
  16384}), CASE(one_warp_waited, {1, 128, 16400})};
// clang-format on
#undef CASE

static const char* wanted;
static void cases() {
  for (const auto& c : kCases)
    if (!std::strcmp(wanted, c.name)) return c.run();
  throw std::invalid_argument(wanted);
}

int main(int argc, char** argv) {
  wanted = argc > 1 ? argv[1] : "";
  return program(cases);
}
