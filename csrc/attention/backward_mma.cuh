// The backward's passes on the tensor cores (mma.sync, sm_80 and up), float16 and bfloat16.
//
// A block owns a tile of one side, rows (q, dO) or keys (k, v), and goes over the tiles of the other side that it sees:
//
//                 owned            streamed         s = owned0 streamed0^T    dp = owned1 streamed1^T
//   Own::rows     q, dO            k, v             S  [rows, keys]           dP          dq += dS k
//   Own::keys     k, v             q, dO            S^T [keys, rows]          dP^T        dk += dS^T q, dv += P^T dO
//
// A warp has 16 of the owned side. What it computes of S and dP lies in its registers as the accumulator of one product and
// serves as the left operand of the next: neither touches shared memory. The owned side stays in shared memory, the
// streamed one comes in by cp.async, two stages deep. The keys' pass goes over all heads of q that share its head of k:
// nobody adds to what another block writes, so every run gives the same bits.
//
// With `atomic` the keys' pass also adds dS k to dq in the workspace, in any order, and no rows' pass is needed: 5 products
// instead of 7. dS is the sum over a block's keys, so it goes through shared memory, over the stage just consumed.
#pragma once
#include "backward.cuh"
#include "fragment.cuh"

namespace dlops::attention {

enum class Pass { dq, dkv, dk, dv };  // dk and dv apart where the registers do not hold both

constexpr bool makes_dq(Pass pass) { return pass == Pass::dq; }
constexpr bool makes_dk(Pass pass) { return pass == Pass::dkv || pass == Pass::dk; }
constexpr bool makes_dv(Pass pass) { return pass == Pass::dkv || pass == Pass::dv; }

// D: head dimension, of q and of v, padded. 99 KB of shared memory is what every GPU from sm_80 on has.
template <int D>
struct MmaTile {
  static constexpr int threads = D <= 128 ? 256 : 128;
  static constexpr int owned = threads / 2;  // 16 per warp
  static constexpr int streamed = 32;
  static constexpr int stages = D <= 192 ? 2 : 1;
  static constexpr int stage = 2 * streamed * D;  // elements
  static constexpr int tiles_bytes = (2 * owned * D + stages * stage) * 2;
  static constexpr int bytes = tiles_bytes + stages * 2 * streamed * 4;  // and L, delta of the streamed rows
  static_assert(bytes <= 99 * 1024);
};

struct MmaPlan {
  BackwardRows rows;
  int64_t tiles, tasks;
  bool wide;        // q, k, v, dout may be read 16 bytes at a time
  bool wide_grads;  // dq, dk, dv may be written 4 bytes at a time
};

// In a Swizzled<D> tile, the shared address of chunk c + 2 k of a row when that of chunk c, 0 or 1, is known: an exclusive or
// and an addition of constants, which most often fold into the instruction.
template <int D>
DLOPS_DEVICE uint32_t moved(uint32_t address, int k) {
  constexpr uint32_t kSpan = D % 64 == 0 ? 127 : 63;
  const uint32_t bytes = static_cast<uint32_t>(k) * 32;
  return (address ^ (bytes & kSpan)) + (bytes & ~kSpan);
}

// A lane's shared addresses within a tile, for ldmatrix x4 of a 16 x 16 block at the tile's first row and column:
// of rows as they lie, for a left operand; for a right one; and of their transpose, for a right operand.
template <int D>
struct Lanes {
  uint32_t left, right, across;
  DLOPS_DEVICE explicit Lanes(uint32_t tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto at = [&](int row, int c) {
      return tile + static_cast<uint32_t>(place<Swizzled<D>>(row, c)) * 2;
    };
    left = across = at(lane % 16, lane / 16);
    right = at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }
};

// [kRows, D] of a tensor whose rows are `stride` apart; what is past `rows` or `width` is 0. any: of any alignment.
template <class T, int D, int kRows, int kThreads, bool any>
DLOPS_DEVICE void load_tile(T* tile, const T* from, int64_t stride, int rows, int width, bool wide) {
  constexpr int kChunks = D / 8, kAll = kRows * kChunks;
  [[maybe_unused]] constexpr int kUnroll =
      D <= 128 ? 8 : 1;  // beyond, the registers have better uses than addresses
#pragma unroll kUnroll
  for (int turn = 0; turn < (kAll + kThreads - 1) / kThreads; turn++) {
    const int i = turn * kThreads + static_cast<int>(threadIdx.x), r = i / kChunks, c = i % kChunks;
    if (kAll % kThreads != 0 && i >= kAll) break;
    T* to = tile + place<Swizzled<D>>(r, c);
    const bool there = r < rows && c * 8 < width;
    const T* chunk = there ? from + r * stride + c * 8 : from;
    if (!any || wide)
      ptx::cp_async<16>(to, chunk, there);
    else
      *reinterpret_cast<uint4*>(to) = load(chunk, there ? width - c * 8 : 0, false);
  }
}

// s[16, C] = a[16, D] b[C, D]^T
template <class T, int D, int C>
DLOPS_DEVICE void product(float (&s)[C / 8][4], uint32_t left, uint32_t right) {
#pragma unroll
  for (int n = 0; n < C / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[n][i] = 0;
#pragma unroll 4
  for (int k = 0; k < D / 16; k++) {
    uint32_t a[4];
    ptx::ldmatrix(a, moved<D>(left, k));
#pragma unroll
    for (int n = 0; n < C / 16; n++) {
      uint32_t b[4];
      ptx::ldmatrix(b, moved<D>(right, k) + n * 16 * D * 2);
      multiply<T>(s[2 * n], s[2 * n + 1], a, b);
    }
  }
}

// acc[16, D] += w[16, C] b[C, D], w in registers.
template <class T, int D, int C>
DLOPS_DEVICE void accumulate(float (&acc)[D / 8][4], const uint32_t (&w)[C / 16][4], uint32_t across) {
#pragma unroll
  for (int k = 0; k < C / 16; k++)
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t b[4];
      ptx::ldmatrix_trans(b, moved<D>(across, n) + k * 16 * D * 2);
      multiply<T>(acc[2 * n], acc[2 * n + 1], w[k], b);
    }
}

// An accumulator [16, C] as the left operand of the next product.
template <class T, int C>
DLOPS_DEVICE void as_operand(uint32_t (&w)[C / 16][4], const float (&s)[C / 8][4]) {
#pragma unroll
  for (int k = 0; k < C / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) w[k][i] = pack_word<T>(&s[2 * k + i / 2][i % 2 * 2]);
}

template <class T, int D, int C>
DLOPS_DEVICE void add_tile(float (&acc)[D / 8][4], const float (&s)[C / 8][4], uint32_t across) {
  uint32_t w[C / 16][4];
  as_operand<T, C>(w, s);
  accumulate<T, D, C>(acc, w, across);
}

// The thread's part of a warp's accumulator: rows lane / 4 and lane / 4 + 8 of `rows` that are written; from `real` on the
// gradient is 0.
template <class T, int D, bool any>
DLOPS_DEVICE void store_rows(T* to, int64_t stride, const float (&acc)[D / 8][4], float scale, int64_t rows,
                             int64_t real, int width, bool wide) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = lane / 4 + 8 * half;
    if (r >= rows) continue;
    T* row = to + r * stride;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int c = n * 8 + lane % 4 * 2;
      if (c >= width) continue;
      const float v[2] = {r < real ? acc[n][2 * half] * scale : 0.f,
                          r < real ? acc[n][2 * half + 1] * scale : 0.f};
      if (!any || wide) {
        *reinterpret_cast<uint32_t*>(row + c) = pack_word<T>(v);
      } else {
        row[c] = static_cast<T>(v[0]);
        if (c + 1 < width) row[c + 1] = static_cast<T>(v[1]);
      }
    }
  }
}

// dq[C, D] += (ds[keys, C])^T k[keys, D]: two tiles of 16 rows by 16 columns per warp at a time.
template <class T, int D, int C, int kKeys, int kWarps>
DLOPS_DEVICE void add_dq(float* dq, const T* ds, const T* k, int rows, int width) {
  static_assert(C == 32);
  const int thread = opaque(static_cast<int>(threadIdx.x)), lane = thread % 32, warp = thread / 32;
  for (int unit = warp; unit < D / 16; unit += kWarps) {
    if (unit * 16 >= width) break;
    float acc[2][2][4] = {};
#pragma unroll 1
    for (int key = 0; key < kKeys; key += 16) {
      uint32_t f[4];
      ptx::ldmatrix_trans(f,
                          ptx::shared_address(k + place<Swizzled<D>>(key + lane % 16, unit * 2 + lane / 16)));
#pragma unroll
      for (int m = 0; m < 2; m++) {
        uint32_t a[4];
        ptx::ldmatrix_trans(a, ptx::shared_address(ds + place<Swizzled<C>>(key + lane / 16 * 8 + lane % 8,
                                                                           m * 2 + lane / 8 % 2)));
        multiply<T>(acc[m][0], acc[m][1], a, f);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = m * 16 + lane / 4 + i / 2 * 8, c = unit * 16 + n * 8 + lane % 4 * 2 + i % 2;
          if (r < rows && c < width) atomicAdd(dq + static_cast<int64_t>(r) * width + c, acc[m][n][i]);
        }
  }
}

}  // namespace dlops::attention
