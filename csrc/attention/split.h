// The split kernel: few query rows over many keys (flash decoding, Dao et al. 2023). The work is one pass over K and V, so
// the rows of a key/value head share it, and it is spread over the keys: a chunk of kChunk keys, counted from key 0, makes
// a partial result of its own, and partial results are merged in the order of the keys. Chunks do not depend on the
// batch, the threads or the room that a cache has behind its last key, so neither does any bit of the result.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "split_tile.h"

namespace dlops {
namespace {

constexpr int kDotGroup = 16;  // keys that stay in the L1 while all rows meet them: a multiple of every width
constexpr int64_t kCacheBytes = 1 << 20;  // an L2: K and V beyond it are prefetched by software
constexpr int64_t kLoneWork =
    1 << 15;  // vectors of K and V below which a second thread costs more than it brings

// x [rows, kTile] = the dot products of the rows with the keys j0 .. j0 + n - 1.
template <class E>
DLOPS_LEAF void dot_tile(const Block& block, const typename E::Query* q, int64_t j0, int n, float* x,
                         Ahead ahead) {
  Ahead none;
  const AttentionProblem& p = block.p;
  const int64_t q_row = round_up(p.d, E::kQueryPad);
  for (int t = 0; t < n; t += kDotGroup) {
    const auto* k = block.key<typename E::Element>(j0 + t);
    const int keys = n - t < kDotGroup ? n - t : kDotGroup;
    for (int r = 0; r < block.rows; r += kTogether) {
      Ahead& next = r ? none : ahead;  // the other rows find all of it in the L1
      const auto* from = q + r * q_row;
      float* to = x + r * kTile + t;
      switch (block.rows - r) {
        case 1: dots<E, 1>(from, q_row, k, p.k.row, keys, p.d, to, next); break;
        case 2: dots<E, 2>(from, q_row, k, p.k.row, keys, p.d, to, next); break;
        case 3: dots<E, 3>(from, q_row, k, p.k.row, keys, p.d, to, next); break;
        default: dots<E, 4>(from, q_row, k, p.k.row, keys, p.d, to, next);
      }
    }
  }
}

// out [R, dv] = fade out + weights [R, n] v [n, dv], from column `begin` on.
template <class E, int R, int C, bool careful>
DLOPS_LEAF void add_values(const typename E::Weight* w, const typename E::Element* v, int64_t v_row, int n,
                           int64_t begin, int64_t dv, const float* fade, float* out, int64_t width,
                           Ahead& ahead) {
  int64_t c = begin;
  for (; c + C * E::kColumns <= dv; c += C * E::kColumns)
    E::template columns<R, C, careful>(w, v + c, v_row, n, 0, fade, out + c, width, ahead);
  if constexpr (C > 1) {
    if (c < dv) add_values<E, R, C / 2, careful>(w, v, v_row, n, c, dv, fade, out, width, ahead);
  } else {
    if (c < dv)
      E::template columns<R, 1, careful>(w, v + c, v_row, n, static_cast<int>(dv - c), fade, out + c, width,
                                         ahead);
  }
}

template <class E>
DLOPS_LEAF void value_tile(const Block& block, const float* x, int64_t j0, int n, bool careful,
                           const float* fade, Partial& state, Ahead ahead) {
  const AttentionProblem& p = block.p;
  Ahead none;
  float unchanged[kRows];
  for (float& f : unchanged) f = 1.f;
  for (int t = 0; t < n; t += kSumKeys) {
    const auto* v = block.value<typename E::Element>(j0 + t);
    const int keys = n - t < kSumKeys ? n - t : kSumKeys;
    for (int r = 0; r < block.rows; r += careful ? 1 : kTogether) {
      Ahead& next = r ? none : ahead;
      const auto* w = E::weights(x + r * kTile, t);
      const float* f = (t ? unchanged : fade) + r;
      float* to = state.out + r * state.width;
      if (careful) {
        add_values<E, 1, 4, true>(w, v, p.v.row, keys, 0, p.dv, f, to, state.width, next);
        continue;
      }
      switch (block.rows - r) {
        case 1:
          add_values<E, 1, E::kFewRowsUnits, false>(w, v, p.v.row, keys, 0, p.dv, f, to, state.width, next);
          break;
        case 2:
          add_values<E, 2, E::kFewRowsUnits, false>(w, v, p.v.row, keys, 0, p.dv, f, to, state.width, next);
          break;
        case 3:
          add_values<E, 3, E::kUnits, false>(w, v, p.v.row, keys, 0, p.dv, f, to, state.width, next);
          break;
        default: add_values<E, 4, E::kUnits, false>(w, v, p.v.row, keys, 0, p.dv, f, to, state.width, next);
      }
    }
  }
}

// Rows of n elements. Without gaps they are one long row.
template <class T>
DLOPS_INLINE Ahead rows_ahead(const T* first, int64_t stride, int64_t n) {
  constexpr int64_t size = sizeof(T);
  return {reinterpret_cast<const char*>(first), stride * size, stride == n ? INT64_MAX : n * size, 0};
}

// state = what the rows see in `keys`, which lie in one chunk.
template <class E>
DLOPS_LEAF void add_chunk(const Block& block, const typename E::Query* q, Range keys, bool prefetch,
                          Partial& state) {
  const AttentionProblem& p = block.p;
  using T = typename E::Element;
  alignas(64) float x[kRows * kTile], fade[kRows];
  state.clear(block.rows);
  for (int64_t j = keys.begin / kDotGroup * kDotGroup, end; j < keys.end; j = end) {
    end = lesser(j / kTile * kTile + kTile, keys.end);
    const int n = static_cast<int>(end - j);
    Ahead values, next_keys;
    if (prefetch) values = rows_ahead(block.value<T>(j), p.v.row, p.dv);
    if (prefetch && end < block.keys.end) next_keys = rows_ahead(block.key<T>(end), p.k.row, p.d);
    dot_tile<E>(block, q, j, n, x, values);
    const bool careful = soften(block, j, n, x, state, fade);
    for (int r = 0; r < block.rows; r++) E::pack_weights(x + r * kTile, n);
    value_tile<E>(block, x, j, n, careful, fade, state, next_keys);
  }
}

template <class E>
void finish(const Block& block, const Partial& state) {
  using T = typename E::Element;
  const AttentionForwardParams& p = block.p;
  auto exp_of = [](float x) { return exp2(set1(x * kLog2e))[0]; };
  for (int r = 0; r < block.rows; r++) {
    const int64_t h = block.head(r), i = block.s.q_begin + block.query(r);
    const float top = state.max[r], sum = state.sum[r];
    float factor = 1.f, total = sum;
    if (sum == 0) {
      total = 1.f;
    } else if (p.sinks && p.sinks[h] != -kInfinity) {
      const float sink = p.sinks[h];
      factor = sink > top ? exp_of(top - sink) : 1.f;
      total = sum * factor + (sink > top ? 1.f : exp_of(sink - top));
    }
    const float lse = sum != sum ? sum : top + log(set1(sum))[0];
    p.lse.data[block.b * p.lse.batch + h * p.lse.head + i] = sum == 0 ? -kInfinity : lse;
    E::store_row(static_cast<T*>(p.out.data) + block.b * p.out.batch + h * p.out.head + i * p.out.row,
                 state.out + r * state.width, p.dv, factor, total);
  }
}

template <class E>
void split_keys(const AttentionForwardParams& p) {
  using Query = typename E::Query;
  const int64_t rows = p.q_len * (p.heads / p.kv_heads), blocks = (rows + kRows - 1) / kRows;
  const int64_t tasks = p.batch * p.kv_heads * blocks, chunks = (p.k_len + kChunk - 1) / kChunk;
  const int64_t width = round_up(p.dv, E::kColumns), q_row = round_up(p.d, E::kQueryPad);
  const int64_t kv = p.batch * p.kv_heads * p.k_len * (p.d + p.dv);
  const bool prefetch = kv * static_cast<int64_t>(sizeof(typename E::Element)) > kCacheBytes;
  const int threads = kv * blocks < kLoneWork * kLanes ? 1 : p.threads;

  auto pack = [&](const Block& block, Query* q) {
    for (int r = 0; r < block.rows; r++)
      E::pack_query(block.q_row<typename E::Element>(r), p.d, q + r * q_row);
  };
  auto chunk = [&](const Block& block, const Query* q, int64_t c, Partial& state) {
    const Range keys = {greater(block.keys.begin, c * kChunk), lesser(block.keys.end, c * kChunk + kChunk)};
    add_chunk<E>(block, q, keys, prefetch, state);
  };
  // The chunks of a block, the first being `first`.
  auto fold = [&](const Block& block, Partial& total, auto first, auto next) {
    total.clear(block.rows);
    const int64_t begin = block.keys.begin / kChunk, end = (block.keys.end + kChunk - 1) / kChunk;
    for (int64_t c = begin; c < end && block.keys.begin < block.keys.end; c++) {
      if (c == begin)
        first(c);
      else
        merge(total, next(c), block.rows);
    }
    finish<E>(block, total);
  };

  constexpr int64_t kMost = Partial::floats(kRows, kMaxDim);
  if (threads <= 1 || chunks <= 1 || tasks >= 8 * threads) {
    parallel_for(threads, tasks, [&](int64_t task) {
      alignas(64) Query q[kRows * kMaxDim];
      alignas(64) float memory[2][kMost];
      const Block block(p, blocks, task);
      Partial total(memory[0], width), part(memory[1], width);
      pack(block, q);
      fold(
          block, total, [&](int64_t c) { chunk(block, q, c, total); },
          [&](int64_t c) -> const Partial& {
            chunk(block, q, c, part);
            return part;
          });
    });
    return;
  }
  // Whoever finishes the last chunk of a block merges them.
  const int64_t each = Partial::floats(lesser(rows, kRows), width);
  const cpu::Scratch parts(static_cast<size_t>(tasks * chunks * each) * sizeof(float)),
      counters(static_cast<size_t>(tasks) * sizeof(float));
  int32_t* done = reinterpret_cast<int32_t*>(counters.floats());
  memset(done, 0, static_cast<size_t>(tasks) * sizeof(int32_t));
  parallel_for(threads, tasks * chunks, [&](int64_t i) {
    const int64_t task = i / chunks, c = i % chunks;
    const Block block(p, blocks, task);
    auto part = [&](int64_t of) { return Partial(parts.floats() + (task * chunks + of) * each, width); };
    if (c * kChunk < block.keys.end && c * kChunk + kChunk > block.keys.begin) {
      alignas(64) Query q[kRows * kMaxDim];
      pack(block, q);
      Partial mine = part(c);
      chunk(block, q, c, mine);
    }
    if (__atomic_add_fetch(done + task, 1, __ATOMIC_ACQ_REL) < chunks) return;
    alignas(64) float memory[kMost];
    Partial total(memory, width);
    fold(
        block, total,
        [&](int64_t of) { memcpy(memory, part(of).max, static_cast<size_t>(each) * sizeof(float)); }, part);
  });
}

}  // namespace
}  // namespace dlops
