// [rows, columns] split over a grid: blocks of kRowThreads threads, x along a row (in chunks), y over rows, so that a
// thread has one row, whose constants it reads once, and short rows share a block. Both axes are grid-stride loops:
//
//   for (int64_t row = first_row(); row < rows; row += row_step())
//     for (int64_t chunk = first_chunk(unroll); chunk < chunks; chunk += chunk_step(unroll))  // + u * blockDim.x
#pragma once
#include <cstdint>

#include "launch.h"

namespace dlops {

constexpr int kRowThreads = 128;         // small blocks: what is left of the registers makes one more
constexpr int64_t kMaxRowBlocks = 4096;  // gridDim.y: its limit is 65535, and this fills any device

// The simt runner builds with a small number: emulated grids stay small, and every grid-stride loop takes a second turn.
#if !defined(DLOPS_MAX_BLOCKS)
#define DLOPS_MAX_BLOCKS 0x7fffffff
#endif
inline unsigned block_count(int64_t wanted, int64_t most = DLOPS_MAX_BLOCKS) {
  most = most < DLOPS_MAX_BLOCKS ? most : DLOPS_MAX_BLOCKS;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct RowGrid { dim3 grid, block; };

// Each thread takes `unroll` chunks per turn.
inline RowGrid row_grid(int64_t rows, int64_t chunks, int unroll) {
  unsigned x = 1;
  while (x < kRowThreads && static_cast<int64_t>(x) * unroll < chunks) x *= 2;
  const unsigned y = kRowThreads / x;
  return {dim3(block_count(ceil_div(chunks, static_cast<int64_t>(x) * unroll)),
               block_count(ceil_div(rows, y), kMaxRowBlocks)),
          dim3(x, y)};
}

DLOPS_DEVICE int64_t first_row() { return static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; }
DLOPS_DEVICE int64_t row_step() { return static_cast<int64_t>(gridDim.y) * blockDim.y; }
DLOPS_DEVICE int64_t first_chunk(int unroll) {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x * unroll + threadIdx.x;
}
DLOPS_DEVICE int64_t chunk_step(int unroll) { return static_cast<int64_t>(gridDim.x) * blockDim.x * unroll; }

// Rows for kernels that give a row to all x threads of a block, in flat order: blockDim = (threads, rows).
DLOPS_DEVICE int64_t flat_row() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }
DLOPS_DEVICE int64_t flat_rows() { return static_cast<int64_t>(gridDim.x) * blockDim.y; }

// The flat index of a thread, for kernels that take one element at a time.
DLOPS_DEVICE int64_t flat_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
DLOPS_DEVICE int64_t flat_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }
inline dim3 flat_grid(int64_t elements) { return dim3(block_count(ceil_div(elements, kRowThreads))); }

}  // namespace dlops
