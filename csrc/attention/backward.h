// The backward pass of the tiled kernels: which task computes what, in which order sums are formed, and dsinks.
//
// A task owns a chunk of the keys of one key/value head: it walks over all rows of the group's heads that see the
// chunk, recomputes P tile by tile, and so forms dK and dV of the chunk alone. dQ is a sum over chunks: each task
// leaves its part in memory, and a second phase adds the parts in the order of the chunks. Chunks depend on the
// sequence's length and d only, so the result does not depend on the batch or on the threads. The parts live in float32
// until they are added, so the pairs of (entry, key/value head) are taken in waves, just enough of them to keep the
// threads busy.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "backward_rows.h"

namespace dlops {
namespace {

constexpr int64_t kMaxChunks = 8;            // bounds the parts of dQ
constexpr int64_t kPartsFloats = 64 << 20;   // of all parts at a time, if one pair's are fewer: 256 MiB
constexpr int64_t kChunkFloats = 132 << 10;  // of K and V: they and their gradients fill an L2 cache of 1 MiB

struct Chunks {
  int64_t keys, count;  // of a chunk: a multiple of a tile's keys; at least one chunk, even without keys
  Chunks(const AttentionProblem& p, int64_t k_len) {
    const int64_t wanted = attention::greater(1, attention::lesser(kMaxChunks, ceil_div(k_len, fitting(p))));
    keys = attention::greater(1, ceil_div(k_len, wanted * kTileKeys)) * kTileKeys;
    count = attention::greater(1, ceil_div(k_len, keys));
  }
  // The most keys of a chunk of sequences up to k_len.
  static int64_t most_keys(const AttentionProblem& p) {
    return attention::greater(attention::lesser(p.k_len, fitting(p)), Chunks(p, p.k_len).keys);
  }
  static int64_t fitting(const AttentionProblem& p) {
    const int64_t keys = attention::greater(256, attention::lesser(2048, kChunkFloats / (p.d + p.dv)));
    return ceil_div(keys, kTileKeys) * kTileKeys;
  }
  Range range(int64_t chunk, int64_t k_len) const {
    return {chunk * keys, attention::lesser((chunk + 1) * keys, k_len)};
  }
};

DLOPS_INLINE Range intersection(Range a, Range b) {
  const int64_t begin = attention::greater(a.begin, b.begin);
  return {begin, attention::greater(begin, attention::lesser(a.end, b.end))};
}

// The keys that the tensors hold for entry b, with those past key_lengths.
DLOPS_INLINE int64_t stored_keys(const AttentionProblem& p, int64_t b) {
  if (!p.cu_k) return p.k_len;
  const Range r = attention::packed(p.cu_k, b, p.total_k, p.k_len);
  return r.end - r.begin;
}

// The part of dQ of one block of rows and one chunk: [d][lanes].
DLOPS_INLINE int64_t block_floats(const AttentionProblem& p) { return p.d * kBlockRows; }

template <class T>
DLOPS_INLINE void zero_rows(T* row, int64_t row_stride, int64_t count, int64_t d) {
  for (int64_t r = 0; r < count; r++) memset(row + r * row_stride, 0, static_cast<size_t>(d) * sizeof(T));
}

// from [count][from_stride] times scale -> to [count][d]
template <class T>
__attribute__((noinline)) void write_rows(const float* from, int64_t from_stride, float scale, T* to,
                                          int64_t row_stride, int64_t count, int64_t d) {
  for (int64_t r = 0; r < count; r++) {
    const float* in = from + r * from_stride;
    T* out = to + r * row_stride;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(out + i, load(in + i) * set1(scale));
    if (i < d) store_part(out + i, load(in + i) * set1(scale), static_cast<int>(d - i));
  }
}

// dQ of a block from its sum in lanes.
template <class T>
void write_dq(const AttentionBackwardParams& p, const Sequence& s, int64_t b, int64_t h, Range rows,
              const float* sum) {
  float scale[kBlockRows];
  for (int r = 0; r < kBlockRows; r++) scale[r] = p.scale;
  const int64_t count = rows.end - rows.begin;
  unpack_rows(sum, whole_vectors(count), scale, query_row<T>(p.dq, s, b, h, rows.begin), p.dq.row, count,
              p.d);
}

// Engine: the arithmetic of one chunk.
//   using T = ...                     type of the tensors
//   static int64_t floats(p, keys)    scratch for chunks of that many keys
//   Engine(p, memory)
//   begin(s, b, kv_head, chunk)       dK = dV = 0
//   float* rows(h, rows, keys)        adds what the rows give to dK and dV; returns their dQ [d][lanes], or null
//   end()                             writes dK and dV
template <class Engine>
void backward_chunk(const AttentionBackwardParams& p, const Sequence& s, int64_t b, int64_t kv_head,
                    int64_t chunk, float* parts, float* memory) {
  using T = typename Engine::T;
  const Chunks chunks(p, s.k_len);
  const Range own = chunks.range(chunk, s.k_len);
  const int64_t group = p.heads / p.kv_heads, blocks = ceil_div(p.q_len, kBlockRows);
  Engine engine(p, memory);
  engine.begin(s, b, kv_head, own);
  for (int64_t g = 0; g < group; g++)
    for (int64_t i = 0; i < s.q_len; i += kBlockRows) {
      const int64_t h = kv_head * group + g;
      const Range rows{i, attention::lesser(i + kBlockRows, s.q_len)};
      const Range keys = intersection(own, attention::keys_of_rows(p, s, rows));
      if (keys.begin < keys.end) {
        const float* dq = engine.rows(h, rows, keys);
        if (!p.dq.data) continue;
        if (chunks.count == 1)
          write_dq<T>(p, s, b, h, rows, dq);
        else
          memcpy(parts + (g * blocks + i / kBlockRows) * block_floats(p), dq,
                 static_cast<size_t>(p.d * whole_vectors(rows.end - rows.begin)) * sizeof(float));
      } else if (p.dq.data && chunks.count == 1) {
        zero_rows(query_row<T>(p.dq, s, b, h, i), p.dq.row, rows.end - rows.begin, p.d);
      }
    }
  engine.end();
  if (chunk + 1 < chunks.count) return;
  const int64_t rest = stored_keys(p, b) - s.k_len;  // keys past key_lengths
  if (p.dk.data) zero_rows(key_row<T>(p.dk, s, b, kv_head, s.k_len), p.dk.row, rest, p.d);
  if (p.dv_.data) zero_rows(key_row<T>(p.dv_, s, b, kv_head, s.k_len), p.dv_.row, rest, p.dv);
}

// dQ of a block: the sum of its chunks' parts, `stride` floats apart.
template <class T>
void add_parts(const AttentionBackwardParams& p, const Sequence& s, int64_t b, int64_t h, int64_t i,
               float* parts, int64_t stride) {
  const Chunks chunks(p, s.k_len);
  if (chunks.count == 1 || i >= s.q_len) return;
  const Range rows{i, attention::lesser(i + kBlockRows, s.q_len)};
  const Range keys = attention::keys_of_rows(p, s, rows);
  const int64_t floats = p.d * whole_vectors(rows.end - rows.begin);
  float* sum = nullptr;
  for (int64_t chunk = 0; chunk < chunks.count; chunk++) {
    const Range common = intersection(chunks.range(chunk, s.k_len), keys);
    if (common.begin == common.end) continue;
    float* part = parts + chunk * stride;
    if (sum)
      for (int64_t x = 0; x < floats; x += kLanes) store(sum + x, load(sum + x) + load(part + x));
    else
      sum = part;
  }
  if (sum)
    write_dq<T>(p, s, b, h, rows, sum);
  else
    zero_rows(query_row<T>(p.dq, s, b, h, i), p.dq.row, rows.end - rows.begin, p.d);
}

template <class Engine>
void backward_chunks(const AttentionBackwardParams& p) {
  using T = typename Engine::T;
  const int64_t group = p.heads / p.kv_heads, pairs = p.batch * p.kv_heads;
  // Of any sequence: rounding a chunk up to whole tiles may leave a longer one with fewer.
  const int64_t chunks =
      attention::greater(1, attention::lesser(kMaxChunks, ceil_div(p.k_len, Chunks::fitting(p))));
  const int64_t blocks = ceil_div(p.q_len, kBlockRows), head_floats = blocks * block_floats(p);
  const bool in_parts = chunks > 1 && p.dq.data;
  const int64_t chunk_floats = group * head_floats, pair_floats = chunks * chunk_floats;
  const int64_t busy = attention::lesser(ceil_div(4 * p.threads, chunks), kPartsFloats / (pair_floats + 1));
  const int64_t wave = in_parts ? attention::lesser(pairs, attention::greater(1, busy)) : pairs;
  const cpu::Scratch parts(in_parts ? static_cast<size_t>(wave * pair_floats) * sizeof(float) : 0);
  const size_t engine_bytes = static_cast<size_t>(Engine::floats(p, Chunks::most_keys(p))) * sizeof(float);

  for (int64_t first = 0; first < pairs; first += wave) {
    const int64_t count = attention::lesser(wave, pairs - first);
    // Chunk by chunk: under a causal mask the first chunks have the most rows, and should start first.
    parallel_for(p.threads, count * chunks, [&](int64_t task) {
      const int64_t pair = first + task % count, chunk = task / count, b = pair / p.kv_heads;
      const Sequence s = attention::sequence_of(p, b);
      if (chunk >= Chunks(p, s.k_len).count) return;
      const cpu::Scratch memory(engine_bytes);
      backward_chunk<Engine>(p, s, b, pair % p.kv_heads, chunk,
                             parts.floats() + (pair - first) * pair_floats + chunk * chunk_floats,
                             memory.floats());
    });
    if (!in_parts) continue;
    parallel_for(p.threads, count * group * blocks, [&](int64_t task) {
      const int64_t block = task % blocks, g = task / blocks % group, pair = first + task / blocks / group;
      const int64_t b = pair / p.kv_heads;
      add_parts<T>(p, attention::sequence_of(p, b), b, pair % p.kv_heads * group + g, block * kBlockRows,
                   parts.floats() + (pair - first) * pair_floats + g * head_floats + block * block_floats(p),
                   chunk_floats);
    });
  }
}

// a [d] . b [d]
template <class T>
double dot(const T* a, const T* b, int64_t d) {
  double sum = 0;
  for (int64_t i = 0; i < d; i++)
    sum += static_cast<double>(load1(a + i)) * static_cast<double>(load1(b + i));
  return sum;
}

// dsink = -sum over rows of exp(sink) / (exp(lse) + exp(sink)) sum_d dO O, in double: entry after entry, row after row.
template <class T>
void sink_gradients(const AttentionBackwardParams& p) {
  parallel_for(p.threads, p.heads, [&](int64_t h) {
    double sum = 0;
    for (int64_t b = 0; b < p.batch; b++) {
      const Sequence s = attention::sequence_of(p, b);
      for (int64_t i = 0; i < s.q_len; i++) {
        const double lse = p.lse.data[b * p.lse.batch + h * p.lse.head + s.q_begin + i];
        if (lse == static_cast<double>(kMinusInf)) continue;  // its output is 0 whatever the sink
        const double weight = 1 / (1 + __builtin_exp(lse - static_cast<double>(p.sinks[h])));
        sum -=
            weight * dot(query_row<const T>(p.dout, s, b, h, i), query_row<const T>(p.out, s, b, h, i), p.dv);
      }
    }
    p.dsinks[h] = static_cast<float>(sum);
  });
}

}  // namespace
}  // namespace dlops
