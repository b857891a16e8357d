// What all blocks made a step ago, [samples, K], times the slice of W_hh that one block owns, [columns, K]: forward h and the
// gate rows of the block's units (K = H), backward the gradients of the gates and the columns of its units (K = G H).
//
//                      64 bytes of K: a span; span i belongs to warp i % 8
//                    +------+------+------+ . . .
//    16 samples (M)  |  w0  |  w1  |  w2  |        read by each warp straight from L2 into its registers: no other warp wants it
//                    +------+------+------+ . . .
//    8 columns (N)   |  w0  |  w1  |  w2  |        shared memory (`persistent`) or global (`fused_cell`)
//                    +------+------+------+ . . .
//
// The eight warps' sums meet in shared memory, always eight and in one order: a sample's bits depend on K alone. Since a product
// does not care which k is which as long as both sides agree, a lane takes 16 contiguous bytes of a row, which serve it as
// two fragments of mma_m16n8k16; nothing is rearranged, and ldmatrix is not needed.
#pragma once
#include "../cuda/mma.h"
#include "../cuda/reduce.h"
#include "../cuda/vec.h"
#include "turns.h"

namespace dlops::lstm {

// ---- a warp's sums of M tiles of 16 samples by N octets of columns ----

// Element e of a lane in each fragment: column 2 (lane % 4) + e % 2, sample sample_of(4 lane + e).

// 16-bit elements, by tensor cores. chains: sums that do not wait for one another. Two where N is small; the bits depend on
// it, so it must not depend on the batch.
template <class T, int M, int N, int chains>
struct Sums16 {
  static constexpr int kAhead = M > 1 ? 4 : N <= 2 ? 12 : 6;  // spans under way at once: each 8 M registers
  static constexpr int sample_of(int at) { return at / 16 + at / 2 % 2 * 8; }

  struct Samples {  // of a span, the lane's 16 bytes of rows lane / 4 and lane / 4 + 8
    uint4 low[M], high[M];

    DLOPS_DEVICE void load(const T* span, int64_t pitch, int lane, int rows) {
      const T* at = span + lane / 4 * pitch + lane % 4 * 8;
#pragma unroll
      for (int m = 0; m < M; m++, at += kSamples * pitch) {
        const int row = m * kSamples + lane / 4;
        low[m] = row < rows ? *reinterpret_cast<const uint4*>(at) : make_uint4(0, 0, 0, 0);
        high[m] = row + 8 < rows ? *reinterpret_cast<const uint4*>(at + 8 * pitch) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  float sum[chains][M][N][4] = {};

  DLOPS_DEVICE void add(const Samples& s, const T* span, int64_t pitch, int lane) {
    const T* at = span + lane / 4 * pitch + lane % 4 * 8;
#pragma unroll
    for (int n = 0; n < N; n++, at += kOctet * pitch) {
      const uint4 b = *reinterpret_cast<const uint4*>(at);
      const uint32_t first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
#pragma unroll
      for (int m = 0; m < M; m++) {
        const uint4 &low = s.low[m], &high = s.high[m];
        ptx::mma_m16n8k16<T>(sum[0][m][n], {low.x, high.x, low.y, high.y}, first);
        ptx::mma_m16n8k16<T>(sum[chains - 1][m][n], {low.z, high.z, low.w, high.w}, second);
      }
    }
  }
  DLOPS_DEVICE float4 fragment(int m, int n, int) const {
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = chains == 2 ? sum[0][m][n][e] + sum[1][m][n][e] : sum[0][m][n][e];
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

// float32, by fused multiply-adds. Lane (q, half, c) = (lane / 8, lane / 4 % 2, lane % 4) takes 4 of a span's 16 k, 8 of the
// samples and 2 columns of each octet: 8 M + 2 N reads of 16 bytes serve 64 M N products, enough that shared memory keeps up
// with them. In the end the four q share out the samples, two to each.
template <int M, int N>
struct Sums32 {
  static constexpr int kAhead = 2;
  static constexpr int sample_of(int at) {
    return at / 16 % 2 * 8 + at / 64 * 4 + at / 32 % 2 * 2 + at / 2 % 2;
  }

  struct Samples {
    float4 row[M][8];

    DLOPS_DEVICE void load(const float* span, int64_t pitch, int lane, int rows) {
      const int first = lane / 4 % 2 * 8;
      const float* at = span + first * pitch + lane / 8 * 4;
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          row[m][i] = first + m * kSamples + i < rows
                          ? *reinterpret_cast<const float4*>(at + (m * kSamples + i) * pitch)
                          : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  };
  float sum[M][N][8][2] = {};

  DLOPS_DEVICE void add(const Samples& s, const float* span, int64_t pitch, int lane) {
    const float* at = span + lane % 4 * 2 * pitch + lane / 8 * 4;
#pragma unroll
    for (int n = 0; n < N; n++, at += kOctet * pitch)
#pragma unroll
      for (int column = 0; column < 2; column++) {
        const float4 b = *reinterpret_cast<const float4*>(at + column * pitch);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int i = 0; i < 8; i++) {
            float& to = sum[m][n][i][column];
            const float4& a = s.row[m][i];
            to = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, to))));
          }
      }
  }
  // A lane gives the samples that its partner keeps, and gets its share of those that it keeps itself.
  DLOPS_DEVICE float4 fragment(int m, int n, int lane) const {
    float four[4][2], two[2][2];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = i / 2, column = i % 2;
      const float low = sum[m][n][row][column], high = sum[m][n][row + 4][column];
      four[row][column] = trade(low, high, lane, 16);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
      two[i / 2][i % 2] = trade(four[i / 2][i % 2], four[i / 2 + 2][i % 2], lane, 8);
    return make_float4(two[0][0], two[0][1], two[1][0], two[1][1]);
  }

 private:
  static DLOPS_DEVICE float trade(float low, float high, int lane, int partner) {
    const float mine = lane & partner ? high : low, others = lane & partner ? low : high;
    return mine + __shfl_xor_sync(kWarp, others, partner);
  }
};

// ---- the block's product ----

template <class T, int M, int N, int chains>
struct Product {
  using Sums = std::conditional_t<sizeof(T) == 2, Sums16<T, M, N, chains>, Sums32<M, N>>;
  static constexpr int kPartials =
      kWarps * M * N * kFragment;  // floats of shared memory: [warp][M][N][fragment]

  // samples [16 M, pitch] in global memory, of which `rows` exist; columns [8 N, pitch].
  static DLOPS_DEVICE void multiply(const T* samples, int64_t samples_pitch, const T* columns,
                                    int64_t columns_pitch, int spans, int rows, float* partials) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    Sums sums;
    for (int first = warp; first < spans; first += kWarps * Sums::kAhead) {
      typename Sums::Samples ahead[Sums::kAhead];
#pragma unroll
      for (int i = 0; i < Sums::kAhead; i++)
        if (first + i * kWarps < spans)
          ahead[i].load(samples + (first + i * kWarps) * kSpan<T>, samples_pitch, lane, rows);
#pragma unroll
      for (int i = 0; i < Sums::kAhead; i++)
        if (first + i * kWarps < spans)
          sums.add(ahead[i], columns + (first + i * kWarps) * kSpan<T>, columns_pitch, lane);
    }
    float4* to = reinterpret_cast<float4*>(partials) + warp * (M * N * 32) + lane;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++) to[(m * N + n) * 32] = sums.fragment(m, n, lane);
  }

  // Element `at` of fragment (m, n), from all warps.
  static DLOPS_DEVICE float total(const float* partials, int m, int n, int at) {
    float some[2] = {};
#pragma unroll
    for (int warp = 0; warp < kWarps; warp++)
      some[warp % 2] += partials[((warp * M + m) * N + n) * kFragment + at];
    return some[0] + some[1];
  }
};

}  // namespace dlops::lstm
