// Flash attention forward for sm_80 (Dao 2023, FlashAttention-2, algorithm 1), bfloat16: cp.async, ldmatrix, mma.sync.
// A test of the runner, not a kernel of the package.
#pragma once
#include "../../../csrc/cuda/mma.h"

namespace flash {

using bf16 = __nv_bfloat16;
constexpr int kRows = 64, kKeys = 64, kThreads = 128;  // a block has kRows queries, a warp 16 of them

struct Params {  // q, o: [B, Lq, H, D]; k, v: [B, Lk, Hk, D]; lse: [B, H, Lq]
  const bf16 *q, *k, *v;
  bf16* o;
  float* lse;
  int lq, lk, heads, kv_heads;
  float scale;
  bool causal;
};

// Element offset of an 8-element chunk in a [rows][D] tile; chunks are swizzled against bank conflicts.
template <int D>
DLOPS_DEVICE int chunk_at(int row, int chunk) {
  return row * D + ((chunk ^ (row & 7)) << 3);
}

template <int D>
DLOPS_DEVICE void load_tile(bf16* dst, const bf16* src, int first, int rows, int stride) {
  for (int i = threadIdx.x; i < kKeys * D / 8; i += kThreads) {
    const int r = i / (D / 8), c = i % (D / 8);
    const bool valid = first + r < rows;
    dlops::ptx::cp_async<16>(dst + chunk_at<D>(r, c), src + (valid ? size_t(first + r) * stride + c * 8 : 0),
                             valid);
  }
}

DLOPS_DEVICE uint32_t pack(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  uint32_t word;
  memcpy(&word, &v, 4);
  return word;
}

// d[.., 16] += a b with b's two halves side by side in f.
DLOPS_DEVICE void multiply(float (&low)[4], float (&high)[4], const uint32_t (&a)[4],
                           const uint32_t (&f)[4]) {
  const uint32_t first[2] = {f[0], f[1]}, second[2] = {f[2], f[3]};
  dlops::ptx::mma_m16n8k16<bf16>(low, a, first);
  dlops::ptx::mma_m16n8k16<bf16>(high, a, second);
}

template <int D>
constexpr size_t kSharedBytes = size_t(kRows + 4 * kKeys) * D * 2;

template <int D>
__global__ void __launch_bounds__(kThreads) forward(const __grid_constant__ Params p) {
  DLOPS_DYNAMIC_SHARED(bf16, tiles, 128);
  bf16* sq = tiles;               // [kRows, D]
  bf16* sk = sq + kRows * D;      // [2, kKeys, D]
  bf16* sv = sk + 2 * kKeys * D;  // [2, kKeys, D]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m0 = blockIdx.x * kRows, h = blockIdx.y, b = blockIdx.z, hk = h / (p.heads / p.kv_heads);
  const bf16* q = p.q + (size_t(b) * p.lq * p.heads + h) * D;
  const bf16* k = p.k + (size_t(b) * p.lk * p.kv_heads + hk) * D;
  const bf16* v = p.v + (size_t(b) * p.lk * p.kv_heads + hk) * D;
  const int q_stride = p.heads * D, k_stride = p.kv_heads * D, shift = p.lk - p.lq;

  int last = p.lk;  // keys that any row of this tile sees
  if (p.causal) last = min(last, max(0, min(m0 + kRows, p.lq) + shift));
  const int steps = (last + kKeys - 1) / kKeys;

  load_tile<D>(sq, q, m0, p.lq, q_stride);
  load_tile<D>(sk, k, 0, p.lk, k_stride);
  load_tile<D>(sv, v, 0, p.lk, k_stride);
  dlops::ptx::cp_async_commit();

  float o[D / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  const float c = p.scale * 1.4426950408889634f;
  const int row = m0 + warp * 16 + lane / 4;

  for (int j = 0; j < steps; j++) {
    const int n0 = j * kKeys, stage = j & 1;
    if (j + 1 < steps) {
      load_tile<D>(sk + (stage ^ 1) * kKeys * D, k, n0 + kKeys, p.lk, k_stride);
      load_tile<D>(sv + (stage ^ 1) * kKeys * D, v, n0 + kKeys, p.lk, k_stride);
    }
    dlops::ptx::cp_async_commit();
    dlops::ptx::cp_async_wait<1>();
    __syncthreads();  // this stage is there

    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t a[4];
      dlops::ptx::ldmatrix(
          a, dlops::ptx::shared_address(sq + chunk_at<D>(warp * 16 + lane % 16, kk * 2 + lane / 16)));
#pragma unroll
      for (int n = 0; n < kKeys / 16; n++) {
        uint32_t f[4];
        const int key = n * 16 + lane / 16 * 8 + lane % 8;
        dlops::ptx::ldmatrix(
            f, dlops::ptx::shared_address(sk + stage * kKeys * D + chunk_at<D>(key, kk * 2 + lane / 8 % 2)));
        multiply(s[2 * n], s[2 * n + 1], a, f);
      }
    }

    float m[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int col = n0 + n * 8 + lane % 4 * 2 + i % 2, r = row + i / 2 * 8;
        const bool seen = col < p.lk && (!p.causal || col <= r + shift);
        s[n][i] = seen ? s[n][i] * c : -INFINITY;
        m[i / 2] = fmaxf(m[i / 2], s[n][i]);
      }
    float correction[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      m[i] = fmaxf(m[i], __shfl_xor_sync(0xffffffffu, m[i], 1));
      m[i] = fmaxf(m[i], __shfl_xor_sync(0xffffffffu, m[i], 2));
      const float base = m[i] == -INFINITY ? 0.f : m[i];
      correction[i] = exp2f(most[i] - base);
      most[i] = m[i];
      m[i] = base;
      sum[i] *= correction[i];
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        s[n][i] = exp2f(s[n][i] - m[i / 2]);
        sum[i / 2] += s[n][i];
      }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[n][i] *= correction[i / 2];
#pragma unroll
    for (int kk = 0; kk < kKeys / 16; kk++) {
      const uint32_t a[4] = {pack(s[2 * kk][0], s[2 * kk][1]), pack(s[2 * kk][2], s[2 * kk][3]),
                             pack(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                             pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t f[4];
        dlops::ptx::ldmatrix_trans(
            f, dlops::ptx::shared_address(sv + stage * kKeys * D +
                                          chunk_at<D>(kk * 16 + lane % 16, n * 2 + lane / 16)));
        multiply(o[2 * n], o[2 * n + 1], a, f);
      }
    }
    __syncthreads();  // the next load overwrites this stage
  }
  dlops::ptx::cp_async_wait<0>();

#pragma unroll
  for (int i = 0; i < 2; i++) {
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
    const int r = row + i * 8;
    if (r >= p.lq) continue;
    const float scale = sum[i] > 0 ? 1.f / sum[i] : 0.f;
    bf16* out = p.o + ((size_t(b) * p.lq + r) * p.heads + h) * D;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const uint32_t word = pack(o[n][2 * i] * scale, o[n][2 * i + 1] * scale);
      memcpy(out + n * 8 + lane % 4 * 2, &word, 4);
    }
    if (lane % 4 == 0)
      p.lse[(size_t(b) * p.heads + h) * p.lq + r] =
          sum[i] > 0 ? (most[i] + log2f(sum[i])) * 0.6931471805599453f : -INFINITY;
  }
}

template <int D>
inline cudaError_t launch(const Params& p, int batch, cudaStream_t stream = nullptr) {
  return dlops::launch(
      forward<D>, {dim3((p.lq + kRows - 1) / kRows, p.heads, batch), dim3(kThreads), kSharedBytes<D>, stream},
      p);
}

}  // namespace flash
