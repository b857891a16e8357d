// The gradient of an additive mask, summed over every dimension that the mask is broadcast along, in a pass of its own.
//
// A task owns a part of the gradient: one entry and head (or all of them, where the mask has one for all), one block of
// rows (or all), a run of keys (or all). It recomputes the scores of everything that is added to its part, in a fixed
// order, and no other task touches it. Memory: the part.
#pragma once
#include "backward.h"
#include "backward_tile.h"

namespace dlops {
namespace {

constexpr int64_t kMaskKeys = 4 * kTileKeys;  // of a part

template <class T>
class MaskGradient {
 public:
  static size_t bytes(const AttentionProblem& p) {
    const int64_t widened = __is_same(T, float) ? 0 : kTileKeys * (p.d + p.dv);
    return static_cast<size_t>(RowBlock<T>::floats(p) + (2 * kTileKeys + 2 * kMaskKeys) * kBlockRows +
                               widened) *
           sizeof(float);
  }

  explicit MaskGradient(const AttentionBackwardParams& p, float* memory)
      : p_(p), block_(p, memory), sum_(memory + RowBlock<T>::floats(p)) {
    head_sum_ = sum_ + kMaskKeys * kBlockRows;
    scores_ = head_sum_ + kMaskKeys * kBlockRows;
    gradients_ = scores_ + kTileKeys * kBlockRows;
    widened_ = gradients_ + kTileKeys * kBlockRows;
  }

  // rows and keys: of the part, of the tensors' lengths. Along a dimension with stride 0 all of it is summed.
  void part(Range entries, Range heads, Range rows, Range keys) {
    const int64_t columns = p_.dmask.key ? keys.end - keys.begin : 1;
    const size_t bytes = static_cast<size_t>(columns * kBlockRows) * sizeof(float);
    memset(sum_, 0, bytes);
    for (int64_t b = entries.begin; b < entries.end; b++)
      for (int64_t h = heads.begin; h < heads.end; h++) {
        // Two levels of sums: a long chain of additions would lose digits.
        memset(head_sum_, 0, bytes);
        const Sequence s = attention::sequence_of(p_, b);
        for (int64_t i = rows.begin; i < attention::lesser(rows.end, s.q_len); i += kBlockRows)
          add_rows(s, b, h, {i, attention::lesser(i + kBlockRows, attention::lesser(rows.end, s.q_len))},
                   keys);
        for (int64_t x = 0; x < columns * kBlockRows; x += kLanes)
          store(sum_ + x, load(sum_ + x) + load(head_sum_ + x));
      }
    float* to = p_.dmask.data + entries.begin * p_.dmask.batch + heads.begin * p_.dmask.head +
                rows.begin * p_.dmask.row + keys.begin * p_.dmask.key;
    for (int64_t t = 0; t < columns; t++) {
      const float* from = sum_ + t * kBlockRows;
      if (p_.dmask.row) {
        for (int64_t r = 0; r < rows.end - rows.begin; r++) to[r * p_.dmask.row + t * p_.dmask.key] = from[r];
      } else {
        Vec all = zero();
        for (int j = 0; j < kBlockVectors; j++) all = all + load(from + j * kLanes);
        to[t * p_.dmask.key] = reduce_add(all);
      }
    }
  }

 private:
  void add_rows(const Sequence& s, int64_t b, int64_t h, Range rows, Range part) {
    const Range keys = intersection(part, attention::keys_of_rows(p_, s, rows));
    if (keys.begin == keys.end) return;
    const ScoreBlock scores(p_, s, b, h, rows);
    block_.read(p_, s, b, h, rows);
    const RowSlice slice = block_.slice({0, static_cast<int>(block_.lanes() / kLanes)});
    const int64_t lanes = slice.lanes(), kv_head = h / (p_.heads / p_.kv_heads);
    for (int64_t j = keys.begin; j < keys.end; j += kTileKeys) {
      const Range tile{j, attention::lesser(j + kTileKeys, keys.end)};
      const int64_t count = tile.end - tile.begin;
      const FloatRows k =
          float_rows(key_row<const T>(p_.k, s, b, kv_head, j), p_.k.row, count, p_.d, widened_);
      const FloatRows v = float_rows(key_row<const T>(p_.v, s, b, kv_head, j), p_.v.row, count, p_.dv,
                                     widened_ + kTileKeys * p_.d);
      product<Into::overwrite, true>(slice.vectors(), count, p_.d, k.data, k.stride, slice.q_lanes, lanes,
                                     scores_, lanes);
      bool seen[kTileKeys];
      if (!finish_scores(p_, scores, slice, tile, 1.f, scores_, gradients_, nullptr, seen)) continue;
      product<Into::overwrite, true>(slice.vectors(), count, p_.dv, v.data, v.stride, slice.dout_lanes, lanes,
                                     gradients_, lanes);
      score_gradients(p_, s, b, h, tile, slice, scores_, gradients_);
      add_tile(slice, count, p_.dmask.key ? head_sum_ + (j - part.begin) * kBlockRows : head_sum_);
    }
  }

  // Adds the tile's dS to the keys' sums, `to`, or where all keys have one, to that.
  void add_tile(const RowSlice& rows, int64_t count, float* to) {
    for (int v = 0; v < rows.vectors(); v++) {
      const VecI exists = lane_index() < static_cast<int32_t>(rows.count() - v * kLanes);
      Vec all = zero();
      for (int64_t t = 0; t < count; t++) {
        const Vec g = select(exists, load(gradients_ + t * rows.lanes() + v * kLanes), zero());
        float* sum = to + t * kBlockRows + v * kLanes;
        if (p_.dmask.key)
          store(sum, load(sum) + g);
        else
          all = all + g;
      }
      if (!p_.dmask.key) store(to + v * kLanes, load(to + v * kLanes) + all);
    }
  }

  const AttentionBackwardParams& p_;
  RowBlock<T> block_;
  float *sum_, *head_sum_, *scores_, *gradients_, *widened_;  // the first two [keys of the part][kBlockRows]
};

template <class T>
void mask_gradient(const AttentionBackwardParams& p) {
  const int64_t entries = p.dmask.batch ? p.batch : 1, heads = p.dmask.head ? p.heads : 1;
  const int64_t blocks = p.dmask.row ? ceil_div(p.q_len, kBlockRows) : 1;
  const int64_t runs = p.dmask.key ? ceil_div(p.k_len, kMaskKeys) : 1;
  auto part = [](int64_t index, int64_t size, int64_t all, bool whole) {
    return whole ? Range{0, all} : Range{index * size, attention::lesser((index + 1) * size, all)};
  };
  parallel_for(p.threads, entries * heads * blocks * runs, [&](int64_t task) {
    const cpu::Scratch memory(MaskGradient<T>::bytes(p));
    MaskGradient<T>(p, memory.floats())
        .part(part(task / (runs * blocks * heads), 1, p.batch, !p.dmask.batch),
              part(task / (runs * blocks) % heads, 1, p.heads, !p.dmask.head),
              part(task / runs % blocks, kBlockRows, p.q_len, !p.dmask.row),
              part(task % runs, kMaskKeys, p.k_len, !p.dmask.key));
  });
}

}  // namespace
}  // namespace dlops
