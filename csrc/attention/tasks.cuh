// Which tile of rows of which head a block takes, and in which order: the dearest tiles first, so that the last blocks of a
// launch are cheap ones, and heads in sections whose keys and values fit the L2 cache together.
#pragma once
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "scores.cuh"

namespace dlops::attention {

struct Tasks {
  int64_t heads;    // of all batch entries
  int64_t tiles;    // per head
  int64_t section;  // heads
  bool last_first;  // causal: late rows see more keys

  struct Task { int64_t tile, batch, head; };
  dim3 grid() const { return dim3(static_cast<unsigned>(heads * tiles)); }
  DLOPS_DEVICE Task at(int64_t i, int64_t heads_per_batch) const {
    const int64_t begin = i / (tiles * section) * section, rest = i - begin * tiles;
    const int64_t size = lesser(section, heads - begin), tile = rest / size, head = begin + rest % size;
    return {last_first ? tiles - 1 - tile : tile, head / heads_per_batch, head % heads_per_batch};
  }
};

constexpr int64_t kSectionBytes = 16 << 20;  // of keys and values: a third of an H100's L2, 2/5 of an A100's

// Host. Heads that share keys and values stay together.
inline Tasks tasks_of(const AttentionProblem& p, int rows) {
  const int64_t group = p.heads / p.kv_heads, bytes = p.k_len * (p.d + p.dv) * bytes_of(p.dtype);
  const int64_t sharing = greater(1, kSectionBytes / greater(1, bytes));
  return {p.batch * p.heads, ceil_div(p.q_len, rows), lesser(p.batch * p.kv_heads, sharing) * group,
          p.window_right >= 0 && p.window_left < 0};
}

// Host: may its rows of d elements be moved 16 bytes at a time?
template <class T>
inline bool wide_heads(const HeadsIn& x, int64_t d) {
  return d % kVec<T> == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % kVec<T> == 0 &&
         x.head % kVec<T> == 0 && x.row % kVec<T> == 0;
}
template <class T>
inline bool wide_heads(const HeadsOut& x, int64_t d) {
  return wide_heads<T>(HeadsIn{x.data, x.batch, x.head, x.row}, d);
}

}  // namespace dlops::attention
