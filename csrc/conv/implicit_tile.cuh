// What the passes of the implicit GEMM share: a block of four warps makes a tile [M, N] of a product whose depth K it takes
// in steps of 32 (kDepth). cp.async fills a ring of four stages in shared memory, three steps ahead of the tensor cores.
//
// Two ways in which an operand's stage lies, both in 16-byte chunks of 8 elements, spread so that neither the copies nor
// ldmatrix, which reads a chunk of 8 rows at once, meet a bank conflict:
//   Major::k   [rows, 32]: two rows share a line of the 32 banks, and chunks move by the pair of rows;
//   Major::mn  [32, rows]: a row of K fills one or two lines; chunks move by the row.
//
// What a tile 128 x 128 costs per step of 32: 2^20 flops; 16 KB copied in; 32 KB read by ldmatrix (a warp makes 64 x 64, of
// 64 + 64 rows). At 2048 flops and 128 bytes of shared memory per clock (one multiprocessor of an A100) that is 512 clocks of
// tensor cores and 384 of shared memory: the tensor cores are the bound, if L2 delivers 1 byte per 64 flops. For an A100's
// 312 TFLOP/s that is 4.9 TB/s, about what its L2 has; on an H100, where mma.sync can reach some 600 TFLOP/s, L2's 5.5 TB/s
// hold it at 350. To be expected, not measured: 200 to 230 TFLOP/s on an A100, 250 to 350 on an H100 or H200, less where a
// tile is mostly padding or the grid fills the device badly. A tile 128 x 64 reads 3/4 of the bytes for half of the products.
#pragma once
#include "../cuda/mma.h"
#include "../cuda/vec.h"

namespace dlops::conv::implicit {

using ptx::Major;

constexpr int kThreads = 128, kStages = 4, kDepth = 32;

// Warps are 2 x 2, each has M / 2 x N / 2 of the tile.
template <int M, int N>
struct Tile {
  static constexpr int kStage = (M + N) * kDepth;       // elements of a stage, a and then b
  static constexpr int kShared = kStages * kStage * 2;  // bytes: 64 KB for 128 x 128, so that two blocks fit
  static_assert(M * N * 4 <= kShared, "the result passes through the ring as float32");
};

// Accumulators of mma_m16n8k16: element e of lane l is row l / 4 + 8 (e / 2), column 2 (l % 4) + e % 2 of 16 x 8.
template <int M, int N>
using Sums = float[M / 32][N / 16][4];

DLOPS_DEVICE int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }
template <int M>
DLOPS_DEVICE int first_row_of_warp() {
  return static_cast<int>(threadIdx.x) / 64 * (M / 2);
}
template <int N>
DLOPS_DEVICE int first_column_of_warp() {
  return static_cast<int>(threadIdx.x) / 32 % 2 * (N / 2);
}

// Where chunk `chunk` of line `line` of an operand's stage begins, in elements. A line is one of R rows (Major::k), or one of
// the 32 steps of K (Major::mn). After 8 lines the pattern repeats.
template <Major major, int R>
DLOPS_DEVICE int place(int line, int chunk) {
  return major == Major::k ? line * kDepth + (chunk ^ (line >> 1 & 3)) * 8
                           : line * R + (chunk ^ (line & 7)) * 8;
}

// A warp's fragments of one operand: 16 rows by 16 of K, from the warp's first row on. Of the four 8 x 8 matrices in one, the
// second is of the same K in a left operand, and of the same rows in a right one, whose [0], [1] are its first 8 rows' and
// [2], [3] the others'.
template <Major major, int R, bool right>
struct Fragments {
  static constexpr int kLine = 2 * (major == Major::k ? kDepth : R);  // bytes
  uint32_t first;  // what this lane reads of the first fragment: its offset in a stage

  DLOPS_DEVICE Fragments(int operand, int first_row) {
    const int lane = lane_of_warp(), second = lane / 8 % 2,
              third = lane / 16;  // in matrices 1 and 3, in 2 and 3
    const int row = right ? third : second, k = right ? second : third;
    const int at = major == Major::k ? place<major, R>(first_row + row * 8 + lane % 8, k)
                                     : place<major, R>(k * 8 + lane % 8, first_row / 8 + row);
    first = static_cast<uint32_t>(2 * (operand + at));
  }
  // The fragment of row `row` and k, multiples of 16. Lines are a multiple of 8 further on, where the pattern is the same;
  // along a line, 16 and 32 elements are bits of the chunk's number that nothing is carried into.
  DLOPS_DEVICE void load(uint32_t (&f)[4], uint32_t stage, int row, int k) const {
    if constexpr (major == Major::k) {
      ptx::ldmatrix(f, ((stage + first) ^ 2 * k) + row * kLine);
    } else {
      ptx::ldmatrix_trans(f, ((stage + first) ^ 2 * row) + k * kLine);
    }
  }
};

// sums += a b^T of one stage: the warp's part.
template <class T, Major major, int M, int N>
DLOPS_DEVICE void add_products(Sums<M, N>& sums, const Fragments<major, M, false>& a,
                               const Fragments<major, N, true>& b, uint32_t stage) {
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t left[M / 32][4];
#pragma unroll
    for (int r = 0; r < M / 32; r++) a.load(left[r], stage, r * 16, k);
#pragma unroll
    for (int n = 0; n < N / 32; n++) {
      uint32_t f[4];
      b.load(f, stage, n * 16, k);
      const uint32_t first[2] = {f[0], f[1]}, second[2] = {f[2], f[3]};
#pragma unroll
      for (int r = 0; r < M / 32; r++) {
        ptx::mma_m16n8k16<T>(sums[r][2 * n], left[r], first);
        ptx::mma_m16n8k16<T>(sums[r][2 * n + 1], left[r], second);
      }
    }
  }
}

// sums = the product over `steps` of K. load(stage) copies the next step to a stage, by cp.async or ordinary stores.
template <class T, Major major, int M, int N, class Load>
DLOPS_DEVICE void multiply(Sums<M, N>& sums, T* ring, int steps, Load&& load) {
  constexpr int kStage = Tile<M, N>::kStage;
  const uint32_t ring_at = ptx::shared_address(ring);
  const Fragments<major, M, false> a(0, first_row_of_warp<M>());
  const Fragments<major, N, true> b(M * kDepth, first_column_of_warp<N>());
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (s < steps) load(ring + s * kStage);
    ptx::cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    ptx::cp_async_wait<kStages - 2>();  // this step
    __syncthreads();                    // all of it, and nobody reads the step before any more
    if (step + kStages - 1 < steps) load(ring + (step + kStages - 1) % kStages * kStage);
    ptx::cp_async_commit();
    add_products<T, major, M, N>(sums, a, b, ring_at + 2 * (step % kStages * kStage));
  }
}

}  // namespace dlops::conv::implicit
