// The rung `split`: decoding, where few rows meet many keys and the time is that of reading K and V once (flash decoding;
// Dao et al. 2023). Every block takes a chunk of 128 keys, counted from key 0 whatever the batch, for up to Rows rows of the
// heads that share these keys, and leaves (base, sum, O) of it in the workspace; a second kernel merges the chunks in order.
// On the fp32 cores: at 16 rows and fewer, memory is slower than they are.
#pragma once
#include "../cuda/vec.h"
#include "naive.cuh"
#include "tasks.cuh"

namespace dlops::attention {

constexpr int kChunkKeys = 128, kSplitThreads = 128, kMaxDim = 256;

// The rows of a sequence and of the heads that share a key/value head, side by side: row r is row r / group of head
// kv_head * group + r % group.
struct SplitTasks { int64_t chunks, row_tiles, kv_heads, group; };

// Workspace of row (batch, head, row): [chunks] of (base, sum), then [chunks][dv] of O not divided by sum, for all rows.
struct SplitParts {
  float2* states;
  float* outputs;
};
DLOPS_DEVICE SplitParts parts_of(const AttentionForwardParams& p, const Head& h, int64_t i, int64_t chunks) {
  const int64_t rows = p.batch * p.heads * p.q_len, row = (h.batch * p.heads + h.head) * p.q_len + i;
  return {reinterpret_cast<float2*>(p.workspace) + row * chunks,
          p.workspace + 2 * rows * chunks + row * chunks * p.dv};
}

// The rows of a block.
struct SplitRow {
  Head head;
  int row;
};

// Where element e of a row of Q lies. Lanes read 4 at a time: where each has 8 of them, the first 4 of all come before the
// second 4 of all, so that the lanes of a key read side by side.
template <int V>
DLOPS_DEVICE int place_of_q(int e) {
  return V == 8 ? e / 4 % 2 * (kMaxDim / 2) + e / 8 * 4 + e % 4 : e;
}

constexpr KernelInfo kSplit = DLOPS_ATTENTION_KERNEL("split", "128 keys x 1, 4 or 8 rows", "attention_split");
template <class T, int Rows>
__global__ void __launch_bounds__(kSplitThreads, 4)
    attention_split(const __grid_constant__ AttentionForwardParams p, const SplitTasks tasks,
                    const bool wide) {
  constexpr int V = kVec<T>, kLanes = 8;  // lanes per key
  DLOPS_SHARED(SplitRow, rows, [Rows]);
  DLOPS_SHARED(float4, q_words, [Rows * kMaxDim / 4]);  // Q [Rows][d], later O [Rows][dv]
  DLOPS_SHARED(float, s, [Rows * kChunkKeys]);
  float* q = reinterpret_cast<float*>(q_words);
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv), thread = static_cast<int>(threadIdx.x);
  const int64_t chunk = blockIdx.x % tasks.chunks, rest = blockIdx.x / tasks.chunks;
  const int64_t row_tile = rest % tasks.row_tiles, pair = rest / tasks.row_tiles;
  const int64_t batch = pair / tasks.kv_heads, kv_head = pair % tasks.kv_heads, n0 = chunk * kChunkKeys;

  const Sequence sequence = sequence_of(p, batch);
  const int64_t row0 = row_tile * Rows, packed_rows = sequence.q_len * tasks.group;
  if (row0 >= packed_rows) return;
  const int count = static_cast<int>(lesser(Rows, packed_rows - row0));
  const Range seen = keys_of_rows(p, sequence, {row0 / tasks.group, (row0 + count - 1) / tasks.group + 1});
  if (n0 >= seen.end || n0 + kChunkKeys <= seen.begin) return;  // the merge does not look at it
  if (thread < Rows) {
    const int64_t r = row0 + min(thread, count - 1);
    rows[thread].head = head_of(p, batch, kv_head * tasks.group + r % tasks.group);
    rows[thread].row = static_cast<int>(r / tasks.group);
  }
  __syncthreads();  // the rows are there
  const int padded = (d + V - 1) / V * V;
  for (int e = thread; e < Rows * padded; e += kSplitThreads) {
    const int r = e / padded, column = e % padded;
    const T* row = row_of<const T>(p.q, rows[r].head, rows[r].row);
    q[r * kMaxDim + place_of_q<V>(column)] = column < d ? static_cast<float>(row[column]) : 0.f;
  }
  __syncthreads();  // Q is there

  // Scores: 8 lanes have a key, a chunk of 16 bytes each in turn; a warp has 4 keys at a time.
  const Head& any = rows[0].head;
  const int keys = static_cast<int>(lesser(kChunkKeys, sequence.k_len - n0));
  const int lane = thread % kLanes;
  for (int j = thread / kLanes; j < kChunkKeys; j += kSplitThreads / kLanes) {
    float dot[Rows] = {};
    const T* k = key_of<const T>(p.k, any, n0 + min(j, keys - 1));
    for (int e = lane * V; e < d; e += kLanes * V) {
      float x[V];
      unpack<T>(load(k + e, d - e, wide), x);
#pragma unroll
      for (int r = 0; r < Rows; r++)
#pragma unroll
        for (int i = 0; i < V; i += 4) {
          const float4 row = q_words[(r * kMaxDim + place_of_q<V>(e + i)) / 4];
          dot[r] = fmaf(row.x, x[i], dot[r]);
          dot[r] = fmaf(row.y, x[i + 1], dot[r]);
          dot[r] = fmaf(row.z, x[i + 2], dot[r]);
          dot[r] = fmaf(row.w, x[i + 3], dot[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < Rows; r++) {
#pragma unroll
      for (int lanes = 1; lanes < kLanes; lanes *= 2) dot[r] += __shfl_xor_sync(kWarp, dot[r], lanes);
      if (lane == r) {
        const Head& h = rows[r].head;
        const int i = rows[r].row, at = static_cast<int>(n0) + j;
        const Visible see = visible_from(p, h.keys, h.shift, i, 0);
        s[r * kChunkKeys + j] =
            at >= see.begin && at < see.end ? score_of(p, h, dot[r], i, at).value : kNegativeInfinity;
      }
    }
  }
  __syncthreads();  // the scores are there, and Q is done with

  // A warp has a row: its base and sum, and probabilities in place of scores.
  for (int r = thread / 32; r < count; r += kSplitThreads / 32) {
    float x[kChunkKeys / 32], most = kNegativeInfinity;
#pragma unroll
    for (int i = 0; i < kChunkKeys / 32; i++) {
      x[i] = s[r * kChunkKeys + thread % 32 + 32 * i];
      most = fmaxf(most, x[i]);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(kWarp, most, lanes));
    Sums<1> sum{};
#pragma unroll
    for (int i = 0; i < kChunkKeys / 32; i++) {
      x[i] = expf(x[i] - (most == kNegativeInfinity ? 0.f : most));
      s[r * kChunkKeys + thread % 32 + 32 * i] = x[i];
      sum.v[0] += x[i];
    }
    const float total = warp_reduce(sum).v[0];
    if (thread % 32 == 0)
      parts_of(p, rows[r].head, rows[r].row, tasks.chunks).states[chunk] = make_float2(most, total);
  }
  for (int e = thread; e < Rows * kMaxDim; e += kSplitThreads) q[e] = 0.f;  // now O
  __syncthreads();  // the probabilities are there, and O is 0

  // O: a thread has V columns of every so many keys; the threads of the same columns add up in order.
  const int columns = (dv + V - 1) / V, sharing = max(kSplitThreads / columns, 1);
  const int mine = thread / columns, column = thread % columns * V;
  float o[Rows][V] = {};
  if (mine < sharing)
#pragma unroll 2
    for (int j = mine; j < keys; j += sharing) {
      float x[V];
      unpack<T>(load(key_of<const T>(p.v, any, n0 + j) + column, dv - column, wide), x);
#pragma unroll
      for (int r = 0; r < Rows; r++) {
        const float probability = s[r * kChunkKeys + j];
        if (r < count && probability != 0.f)  // a key that the row does not see may hold NaN
#pragma unroll
          for (int i = 0; i < V; i++) o[r][i] = fmaf(probability, x[i], o[r][i]);
      }
    }
  for (int turn = 0; turn < sharing; turn++) {
    if (turn == mine)
#pragma unroll
      for (int r = 0; r < Rows; r++)
#pragma unroll
        for (int i = 0; i < V; i++) q[r * kMaxDim + column + i] += o[r][i];
    __syncthreads();  // the next threads add to it
  }
  for (int e = thread; e < count * dv; e += kSplitThreads) {
    const int r = e / dv, at = e % dv;
    parts_of(p, rows[r].head, rows[r].row, tasks.chunks).outputs[chunk * dv + at] = q[r * kMaxDim + at];
  }
}

constexpr KernelInfo kSplitMerge = DLOPS_ATTENTION_KERNEL("split", "1 row", "attention_split_merge");
// A warp has a row.
template <class T>
__global__ void __launch_bounds__(kSplitThreads)
    attention_split_merge(const __grid_constant__ AttentionForwardParams p, const int64_t chunks) {
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = flat_row(); row < p.batch * p.heads * p.q_len; row += flat_rows()) {
    const NaiveIndex x = naive_index(p, row, 1);
    const Head h = head_of(p, x.batch, x.head);
    if (x.row >= h.rows) continue;
    const SplitParts parts = parts_of(p, h, x.row, chunks);
    const Range seen = keys_of_row(p, h.sequence, x.row);
    const int64_t first = seen.begin / kChunkKeys,
                  end = seen.end > seen.begin ? (seen.end + kChunkKeys - 1) / kChunkKeys : 0;
    float most = kNegativeInfinity;
    for (int64_t c = first + lane; c < end; c += 32) most = fmaxf(most, parts.states[c].x);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(kWarp, most, lanes));
    const float base = most == kNegativeInfinity ? 0.f : most;
    float sum = 0.f, o[kMaxDim / 32] = {};
    for (int64_t c = first; c < end; c++) {
      const float2 state = parts.states[c];
      if (state.y == 0.f) continue;
      const float weight = expf(state.x - base);
      sum = fmaf(weight, state.y, sum);
#pragma unroll
      for (int i = 0; i < kMaxDim / 32; i++)
        if (lane + 32 * i < p.dv) o[i] = fmaf(weight, parts.outputs[c * p.dv + lane + 32 * i], o[i]);
    }
    const bool empty = sum == 0.f;
    const float sink = p.sinks && !empty ? expf(p.sinks[h.head] - base) : 0.f;
    const float scale = empty ? 0.f : 1.f / (sum + sink);
    if (lane == 0) *lse_of(p.lse, h, x.row) = empty ? kNegativeInfinity : base + logf(sum);
#pragma unroll
    for (int i = 0; i < kMaxDim / 32; i++)
      if (lane + 32 * i < p.dv) row_of<T>(p.out, h, x.row)[lane + 32 * i] = static_cast<T>(o[i] * scale);
  }
}

}  // namespace dlops::attention
