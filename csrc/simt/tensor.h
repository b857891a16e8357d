// The instructions behind cuda/ptx.h, cuda/mma.h and cuda/tma.h, as the simt runner plays them. Layouts follow the PTX
// ISA 9.0; each definition names its section. Shared addresses are the 32-bit ones of the block (shared.h).
#pragma once
#include <cstddef>
#include <cstdint>

#include "location.h"

// What the driver encodes opaquely; here in the clear. Dimensions are innermost first.
struct alignas(64) CUtensorMap {
  char* base;
  uint64_t stride[3];         // bytes, of dimensions 1..3; dimension 0 is dense
  uint32_t size[4], box[4];   // elements
  uint32_t rank, elem_bytes;  //
  uint32_t swizzle;           // 0: none, 1: 32 bytes, 2: 64, 3: 128
  uint32_t unused[13];
};
static_assert(sizeof(CUtensorMap) == 128);

namespace dlops::simt {

enum class Half16 { bf16, f16 };  // the 16-bit types of the tensor cores

// Warp-wide 8x8 matrices of 16-bit elements: count of them (1, 2, 4), one row address per lane.
void ldmatrix(uint32_t* r, int count, uint32_t address, bool transpose, Loc);
void stmatrix(const uint32_t* r, int count, uint32_t address, bool transpose, Loc);

// d[4] += a[4] b[2], one warp: m16n8k16 with float32 accumulators.
void mma_m16n8k16(Half16, float* d, const uint32_t* a, const uint32_t* b, Loc);

// dst is garbage until the wait that covers it. bytes: 4, 8 or 16; source_bytes of them are read, the rest are zeros.
void cp_async(void* dst, const void* src, int bytes, int source_bytes, Loc);
void cp_async_commit();
void cp_async_wait(int pending, Loc);  // all but the `pending` youngest groups have landed

void mbarrier_init(uint64_t* bar, uint32_t count, Loc);
void mbarrier_arrive(uint64_t* bar, uint32_t expect_bytes, Loc);
void mbarrier_wait(uint64_t* bar, uint32_t parity, Loc);  // until the phase of that parity is over
void fence_mbarrier_init(Loc);
void fence_proxy_async(Loc);

// Copies a box between global and shared memory; coordinates in elements, innermost first, `map->rank` of them. Outside
// the tensor a load writes zeros and a store writes nothing.
void tma_load(void* dst, const CUtensorMap* map, uint64_t* bar, const int* coordinates, Loc);
void tma_store(const CUtensorMap* map, const void* src, const int* coordinates, Loc);
void tma_store_commit(Loc);
void tma_store_wait(int pending, bool read_only, Loc);  // read_only: the source may be reused, no more

// One warpgroup: d[n/2] of each thread (+)= A[64, 16] B[16, n]. A comes from registers (a_registers[4]) or through
// descriptor `a`; B always through a descriptor. mn_major_*: the matrix lies with M (or N) contiguous, not K.
struct Wgmma {
  Half16 type;
  int n;
  uint64_t a, b;
  const uint32_t* a_registers;  // or null
  bool mn_major_a, mn_major_b;
  bool accumulate;
};
void wgmma(float* d, const Wgmma&, Loc);
void wgmma_fence(Loc);
void wgmma_commit(Loc);
void wgmma_wait(int pending, Loc);

// bar.sync, bar.arrive: `threads` of the block, a multiple of 32, meet at barrier `id` (1..15).
void named_barrier_sync(int id, int threads, Loc);
void named_barrier_arrive(int id, int threads, Loc);

// Thread-block clusters and cooperative grids.
void cluster_sync(Loc);
uint32_t cluster_rank();
void* cluster_map(const void* p, uint32_t rank, Loc);  // the same place in another block's shared memory
void grid_sync(Loc);

uint32_t shared_address(const void* p, Loc);  // p must point into the block's shared memory

}  // namespace dlops::simt
