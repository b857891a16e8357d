// The rung `online`: one kernel, scores never leave the block (Milakov and Gimelshein 2018; Dao et al. 2022). On the fp32
// cores, so it also serves float32 and GPUs without the newer tensor-core instructions.
//
// A block has 64 rows and takes 64 keys at a time. A thread (x, y) of 16 x 16 has the scores of rows y + 16 a and keys
// x + 16 b, and of the output of its rows columns 64 c + 4 x .. 4 x + 3. Q and K come through shared memory in slices of 32
// of the head dimension, V in slices of 64 columns, always as float32. Reads are of 4 floats; strides of 4 mod 32 floats
// spread the 16 rows of a slice over all banks, and one of 16 mod 32 the two rows that a warp's scores go to.
#pragma once
#include "../cuda/fast_math.h"
#include "../cuda/vec.h"
#include "careful.cuh"
#include "naive.cuh"
#include "tasks.cuh"

namespace dlops::attention {

constexpr int kOnlineTile = 64, kOnlineThreads = 256;  // rows, keys, columns of V
constexpr int kSlice = 32, kSliceStride = kSlice + 4, kProbabilityStride = 80;

// [64][width] of x to shared memory as float32, zeros where there is nothing: rows [0, valid), columns [0, left). The element
// type is looked at where memory is touched and nowhere else: one kernel serves all.
template <int width, class T>
DLOPS_DEVICE void load_wide(float* tile, int tile_stride, const T* x, int64_t stride, int valid, int left) {
  constexpr int kChunks = width / kVec<T>;
#pragma unroll 2
  for (int i = opaque(static_cast<int>(threadIdx.x)); i < kOnlineTile * kChunks; i += kOnlineThreads) {
    const int row = i / kChunks, column = i % kChunks * kVec<T>;
    const uint4 chunk = load(x + row * stride + column, row < valid ? left - column : 0, true);
#pragma unroll
    for (int quad = 0; quad < kQuads<T>; quad++) {
      float v[4];
      unpack_quad<T>(chunk, quad, v);
      *reinterpret_cast<float4*>(tile + row * tile_stride + column + 4 * quad) =
          make_float4(v[0], v[1], v[2], v[3]);
    }
  }
}
template <int width>
DLOPS_DEVICE void load_floats(float* tile, int tile_stride, const void* x, Dtype t, int64_t first,
                              int64_t stride, int valid, int left, bool wide) {
  if (wide) {
    if (t == Dtype::f32)
      load_wide<width>(tile, tile_stride, static_cast<const float*>(x) + first, stride, valid, left);
    else if (t == Dtype::f16)
      load_wide<width>(tile, tile_stride, static_cast<const __half*>(x) + first, stride, valid, left);
    else
      load_wide<width>(tile, tile_stride, static_cast<const __nv_bfloat16*>(x) + first, stride, valid, left);
    return;
  }
#pragma unroll 1
  for (int i = opaque(static_cast<int>(threadIdx.x)); i < kOnlineTile * width; i += kOnlineThreads) {
    const int row = i / width, column = i % width;
    const bool exists = row < valid && column < left;
    tile[row * tile_stride + column] = exists ? load_float(x, t, first + row * stride + column) : 0.f;
  }
}

DLOPS_DEVICE void read4(const float* p, float (&v)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(p);
  v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}

constexpr KernelInfo kOnline = DLOPS_ATTENTION_KERNEL("online", "64 rows x 64 keys", "attention_online");
// D: dv padded to a multiple of 64. wide: q, k, v may be read 16 bytes at a time.
template <int D>
__global__ void __launch_bounds__(kOnlineThreads, D <= 128 ? 2 : 1)
    attention_online(const __grid_constant__ AttentionForwardParams p, const Tasks tasks, const bool wide) {
  constexpr int K = kOnlineTile;
  DLOPS_SHARED(float4, tile_words, [2 * K * kSliceStride / 4]);  // Q [64][36] and K [64][36], or V [64][64]
  DLOPS_SHARED(float4, probability_words, [K * kProbabilityStride / 4]);  // [row][key]
  float *tiles = reinterpret_cast<float*>(tile_words),
        *probabilities = reinterpret_cast<float*>(probability_words);
  DLOPS_SHARED(Head, head, [1]);  // not in registers, of which there are none to spare
  float *q_slice = tiles, *k_slice = tiles + K * kSliceStride;
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv);

  const Tasks::Task t = tasks.at(blockIdx.x, p.heads);
  if (threadIdx.x == 0) head[0] = head_of(p, t.batch, t.head);
  __syncthreads();  // the head is there
  const Head& h = head[0];
  const int row0 = static_cast<int>(t.tile) * K;
  if (row0 >= h.rows) return;  // packed: this sequence is shorter
  const Range seen = keys_of_rows(p, h.sequence, {row0, min(row0 + K, h.rows)});
  const int first = static_cast<int>(seen.begin) / K * K, end = static_cast<int>(seen.end);

  float o[D / 64][4][4] = {}, most[4], sum[4] = {};
#pragma unroll
  for (int a = 0; a < 4; a++) most[a] = kNegativeInfinity;
  for (int n0 = first; n0 < end; n0 += K) {
    float s[4][4] = {};
    for (int e = 0; e < d; e += kSlice) {
      __syncthreads();  // the last slice is done with
      load_floats<kSlice>(q_slice, kSliceStride, p.q.data, p.dtype, row_at(p.q, h, row0) + e, p.q.row,
                          h.rows - row0, d - e, wide);
      load_floats<kSlice>(k_slice, kSliceStride, p.k.data, p.dtype, key_at(p.k, h, n0) + e, p.k.row,
                          h.keys - n0, d - e, wide);
      __syncthreads();  // the slices are there
#pragma unroll 1
      for (int i = 0; i < kSlice; i += 4) {
        float row[4][4], key[4][4];
#pragma unroll
        for (int a = 0; a < 4; a++) {
          read4(q_slice + (y + 16 * a) * kSliceStride + i, row[a]);
          read4(k_slice + (x + 16 * a) * kSliceStride + i, key[a]);
        }
#pragma unroll
        for (int e4 = 0; e4 < 4; e4++)
#pragma unroll
          for (int a = 0; a < 4; a++)
#pragma unroll
            for (int b = 0; b < 4; b++) s[a][b] = fmaf(row[a][e4], key[b][e4], s[a][b]);
      }
    }
    // From dots to scores: one element at a time, in shared memory, because 16 copies of this would be a lot of code.
    float* mine = probabilities + y * kProbabilityStride + x;  // + 16 (a kProbabilityStride + b)
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
      for (int b = 0; b < 4; b++) mine[16 * (a * kProbabilityStride + b)] = s[a][b];
#pragma unroll 1
    for (int e = 0; e < 16; e++) {
      const int i = row0 + y + e / 4 * 16, j = n0 + x + e % 4 * 16;
      float& score = mine[16 * (e / 4 * kProbabilityStride + e % 4)];
      const Visible see = visible_from(p, h.keys, h.shift, i, 0);
      const bool visible = i < h.rows && j >= see.begin && j < see.end;
      score = visible ? score_of(p, h, score, i, j).value : kNegativeInfinity;
    }
#pragma unroll
    for (int a = 0; a < 4; a++) {
      float largest = most[a];
#pragma unroll
      for (int b = 0; b < 4; b++) {
        s[a][b] = mine[16 * (a * kProbabilityStride + b)];
        largest = fmaxf(largest, s[a][b]);
      }
#pragma unroll
      for (int lanes = 1; lanes < 16; lanes *= 2)  // the 16 threads of a row are one half of a warp
        largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, lanes));
      const float base = largest == kNegativeInfinity ? 0.f : largest, correction = expf(most[a] - base);
      most[a] = largest;
      sum[a] *= correction;
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const float probability = expf(s[a][b] - base);
        sum[a] += probability;
        mine[16 * (a * kProbabilityStride + b)] = probability;
      }
#pragma unroll
      for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[c][a][e] *= correction;
    }
    if (p.dropout_p > 0) {
      const Dropout dropout(p, h);
#pragma unroll 1
      for (int e = 0; e < 16; e++)
        if (!dropout.keeps(row0 + y + e / 4 * 16, n0 + x + e % 4 * 16))
          mine[16 * (e / 4 * kProbabilityStride + e % 4)] = 0.f;
    }
#pragma unroll
    for (int c = 0; c < D / 64; c++) {
      if (c * 64 >= dv) continue;
      __syncthreads();  // K, or the last slice of V, is done with
      load_floats<64>(tiles, 64, p.v.data, p.dtype, key_at(p.v, h, n0) + c * 64, p.v.row, h.keys - n0,
                      dv - c * 64, wide);
      __syncthreads();  // V is there, and so are the probabilities
#pragma unroll 1
      for (int j = 0; j < K; j += 4) {
        float row[4][4], value[4][4];
#pragma unroll
        for (int a = 0; a < 4; a++) {
          read4(probabilities + (y + 16 * a) * kProbabilityStride + j, row[a]);
          read4(tiles + (j + a) * 64 + 4 * x, value[a]);
        }
#pragma unroll
        for (int j4 = 0; j4 < 4; j4++)
#pragma unroll
          for (int a = 0; a < 4; a++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[c][a][e] = fmaf(row[a][j4], value[j4][e], o[c][a][e]);
      }
    }
  }

  float lse[4];
  bool again[4];
#pragma unroll
  for (int a = 0; a < 4; a++) {
#pragma unroll
    for (int lanes = 1; lanes < 16; lanes *= 2) sum[a] += __shfl_xor_sync(kWarp, sum[a], lanes);
    const int i = row0 + y + 16 * a;
    const bool exists = i < h.rows, empty = most[a] == kNegativeInfinity && sum[a] == 0.f;
    const float sink = p.sinks && !empty ? expf(p.sinks[h.head] - most[a]) : 0.f;
    const float scale = empty ? 0.f : 1.f / (sum[a] + sink) / (1.f - p.dropout_p);
    lse[a] = empty ? kNegativeInfinity : most[a] + logf(sum[a]);
    if (x == 0 && exists) *lse_of(p.lse, h, i) = lse[a];
    const int64_t out = row_at(p.out, h, i);
    bool good = true;
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (const int column = c * 64 + 4 * x + e; exists && column < dv) {
          good = good && finite(o[c][a][e] * scale);
          store_float(p.out.data, p.dtype, out + column, o[c][a][e] * scale);
        }
    const uint32_t bad = __ballot_sync(kWarp, !good);
    again[a] = x == 0 && finite(lse[a]) && (bad >> (threadIdx.x % 32) & 0xffffu) != 0;
  }
#pragma unroll
  for (int a = 0; a < 4; a++) careful_rows(again[a], p, h, row0 + y + 16 * a, lse[a]);
}

}  // namespace dlops::attention
