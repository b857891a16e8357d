// A few query rows over many keys: what a task is about, and what a tile of its scores becomes.
//
// The rows of a task are those of one key/value head, the query heads of its group included, so that a key or value is
// loaded once for all of them. Row r of the group's rows is query r / group of query head r % group.
#pragma once
#include "../cpu/math.h"
#include "geometry.h"

namespace dlops {
namespace {

using attention::greater;
using attention::keys_of_row;
using attention::lesser;
using attention::Range;
using attention::Sequence;
using attention::sequence_of;

#define DLOPS_LEAF static __attribute__((noinline))

constexpr int kRows = 16;         // of a task: a multiple of every width
constexpr int kTile = 128;        // keys between two updates of the running maximum
constexpr int64_t kChunk = 512;   // keys, counted from key 0: the unit of parallel work and of summation
constexpr int64_t kMaxDim = 256;  // a multiple of every width

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2e = 1.44269504f;

DLOPS_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// op over all lanes.
template <class Op>
DLOPS_INLINE float fold_lanes(Vec v, Op op) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half; half /= 2) v = op(v, __builtin_shuffle(v, lane_index() + half));
  return v[0];
}

struct Block {
  const AttentionForwardParams& p;
  Sequence s;
  int64_t b, kv_head, group, first;
  int rows;    // of q_len * group, from `first`; none where a packed sequence is shorter than the longest
  Range keys;  // that any of the rows may see

  // index = (b * kv_heads + kv_head) * blocks + block
  Block(const AttentionForwardParams& params, int64_t blocks, int64_t index) : p(params) {
    group = p.heads / p.kv_heads;
    b = index / blocks / p.kv_heads;
    kv_head = index / blocks % p.kv_heads;
    first = index % blocks * kRows;
    s = sequence_of(p, b);
    rows = static_cast<int>(greater(0, lesser(kRows, s.q_len * group - first)));
    keys = {0, 0};
    if (rows) keys = attention::keys_of_rows(p, s, {query(0), query(rows - 1) + 1});
  }

  int64_t query(int r) const { return (first + r) / group; }
  int64_t head(int r) const { return kv_head * group + (first + r) % group; }

  template <class T>
  const T* q_row(int r) const {
    return static_cast<const T*>(p.q.data) + b * p.q.batch + head(r) * p.q.head +
           (s.q_begin + query(r)) * p.q.row;
  }
  template <class T>
  const T* key(int64_t j) const {
    return static_cast<const T*>(p.k.data) + b * p.k.batch + kv_head * p.k.head + (s.k_begin + j) * p.k.row;
  }
  template <class T>
  const T* value(int64_t j) const {
    return static_cast<const T*>(p.v.data) + b * p.v.batch + kv_head * p.v.head + (s.k_begin + j) * p.v.row;
  }
  bool options() const { return p.softcap > 0 || p.alibi_slopes || p.mask.kind != MaskKind::none; }
};

// What the rows have seen so far: the largest score, the sum of exp(score - max), and the weighted values.
struct Partial {
  float *max, *sum;  // [kRows]
  float* out;        // [rows, width]
  int64_t width;

  static constexpr int64_t floats(int64_t rows, int64_t width) { return 2 * kRows + rows * width; }
  Partial(float* memory, int64_t width)
      : max(memory), sum(memory + kRows), out(memory + 2 * kRows), width(width) {}

  void clear(int rows) {
    for (int r = 0; r < kRows; r++) {
      max[r] = -kInfinity;
      sum[r] = 0;
    }
    for (int64_t i = 0; i < rows * width; i++) out[i] = 0;
  }
};

// Where nothing is visible the maximum is -inf, and -inf less -inf would be NaN.
DLOPS_INLINE Vec finite_max(Vec m) { return select(m == set1(-kInfinity), zero(), m); }

// a = a and then b.
DLOPS_LEAF void merge(Partial& a, const Partial& b, int rows) {
  alignas(64) float keep[kRows], take[kRows];
  for (int r = 0; r < kRows; r += kLanes) {
    const Vec was = load(a.max + r), is = load(b.max + r), top = max(was, is), base = finite_max(top);
    const Vec scale_a = exp2((was - base) * set1(kLog2e)), scale_b = exp2((is - base) * set1(kLog2e));
    store(a.sum + r, fma(scale_b, load(b.sum + r), scale_a * load(a.sum + r)));
    store(a.max + r, top);
    store(keep + r, scale_a);
    store(take + r, scale_b);
  }
  for (int r = 0; r < rows; r++)
    for (int64_t i = 0; i < a.width; i += kLanes) {
      float* to = a.out + r * a.width + i;
      store(to, fma(set1(take[r]), load(b.out + r * b.width + i), set1(keep[r]) * load(to)));
    }
}

// Elements i .. i + kLanes - 1 of a row of n, `stride` apart; what does not exist is 0.
template <class T>
DLOPS_INLINE Vec gather(const T* from, int64_t stride, int64_t i, int64_t n) {
  if (stride == 1 && i + kLanes <= n) return load(from + i);
  float lane[kLanes] = {};
  for (int l = 0; l < kLanes && i + l < n; l++) lane[l] = load1(from + (i + l) * stride);
  return load(lane);
}
DLOPS_INLINE Vec gather(const uint8_t* from, int64_t stride, int64_t i, int64_t n) {
  float lane[kLanes] = {};
  for (int l = 0; l < kLanes && i + l < n; l++) lane[l] = from[(i + l) * stride] ? 0.f : -kInfinity;
  return load(lane);
}

// The dot products x [n] of row r with the keys j0 .. j0 + n - 1 become scores: -inf where the row does not see the key, up
// to a whole number of vectors. Returns the factor that is still missing.
DLOPS_LEAF float finish_scores(const Block& block, int r, int64_t j0, int n, float* x) {
  const AttentionForwardParams& p = block.p;
  const int64_t i = block.query(r), h = block.head(r);
  const Range see = keys_of_row(p, block.s, i);
  const bool whole = see.begin <= j0 && j0 + n <= see.end && n % kLanes == 0;
  if (whole && !block.options()) return p.scale;

  const float slope = p.alibi_slopes ? p.alibi_slopes[block.b * p.alibi_batch + h] : 0.f;
  const int64_t mask_at = block.b * p.mask.batch + h * p.mask.head + i * p.mask.row + j0 * p.mask.key;
  auto masked = [&](Vec s, auto* type, int t) {
    const Vec m = gather(static_cast<decltype(type)>(p.mask.data) + mask_at, p.mask.key, t, n);
    return select(m == set1(-kInfinity), m, s + m);  // the score may be NaN
  };
  const int begin = static_cast<int>(lesser(greater(see.begin - j0, 0), n)),
            end = static_cast<int>(lesser(greater(see.end - j0, 0), n));
  for (int t = 0; t < n; t += kLanes) {
    Vec s = load(x + t) * set1(p.scale);
    if (p.softcap > 0) s = set1(p.softcap) * tanh(s * set1(1.f / p.softcap));
    const VecI key = lane_index() + t;
    if (p.alibi_slopes) {
      const VecI distance = key + static_cast<int32_t>(j0 - i - block.s.shift);
      s = fma(set1(-slope), abs(__builtin_convertvector(distance, Vec)), s);
    }
    switch (p.mask.kind) {
      case MaskKind::none: break;
      case MaskKind::boolean: s = masked(s, static_cast<const uint8_t*>(nullptr), t); break;
      case MaskKind::f32: s = masked(s, static_cast<const float*>(nullptr), t); break;
      case MaskKind::f16: s = masked(s, static_cast<const Half*>(nullptr), t); break;
      case MaskKind::bf16: s = masked(s, static_cast<const Bfloat*>(nullptr), t); break;
    }
    store(x + t, select((key >= begin) & (key < end), s, set1(-kInfinity)));
  }
  return 1.f;
}

// Dot products x [rows, kTile] with the keys j0 .. j0 + n - 1 become weights exp(score - max); max and sum of `state` move
// on, and `fade` is what the values summed so far are to be multiplied by. Returns whether some key has weight 0 in some
// row: only a hidden key has.
DLOPS_LEAF bool soften(const Block& block, int64_t j0, int n, float* x, Partial& state, float* fade) {
  alignas(64) float factor[kRows], base[kRows];
  for (int r = 0; r < kRows; r++) fade[r] = state.max[r];
  for (int r = 0; r < block.rows; r++) {
    float* row = x + r * kTile;
    factor[r] = finish_scores(block, r, j0, n, row);
    const Vec c = set1(factor[r]);
    Vec top = set1(state.max[r]);
    for (int t = 0; t < n; t += kLanes) top = max(load(row + t) * c, top);  // not NaN
    state.max[r] = fold_lanes(top, [](Vec a, Vec b) { return max(a, b); });
  }
  for (int r = 0; r < kRows; r += kLanes) {
    const Vec m = finite_max(load(state.max + r));
    store(base + r, m);
    store(fade + r, exp2((load(fade + r) - m) * set1(kLog2e)));
  }
  Vec least = set1(1.f);
  for (int r = 0; r < block.rows; r++) {
    float* row = x + r * kTile;
    const Vec c = set1(factor[r]), m = set1(-base[r]);
    Vec sum = zero();
    for (int t = 0; t < n; t += kLanes) {
      const Vec v = load(row + t);
      const Vec w = select(v * c == set1(-kInfinity), zero(), exp2(fma(v, c, m) * set1(kLog2e)));
      least = min(select(lane_index() < n - t, w, set1(1.f)), least);  // lanes past the keys have weight 0
      sum = sum + w;
      store(row + t, w);
    }
    state.sum[r] = __builtin_fmaf(state.sum[r], fade[r], fold_lanes(sum, [](Vec a, Vec b) { return a + b; }));
  }
  return fold_lanes(least, [](Vec a, Vec b) { return min(a, b); }) == 0;
}

}  // namespace
}  // namespace dlops
