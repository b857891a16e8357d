// What a block of rows brings to the backward pass, whatever the keys: Q and dO, in lanes and in their natural layout,
// and per row the numbers that turn scores into gradients.
//
// A sink only scales a row: with w = exp(lse) / (exp(lse) + exp(sink)) the probabilities are w exp(s - lse). Here w
// goes to dO, once per row, so that the tiles know nothing of sinks:
//
//   P = exp(s - lse)      dV = P^T (w dO)      dS = P (V (w dO) - delta)      delta = w sum_d dO O - dlse
#pragma once
#include "scores.h"

namespace dlops {
namespace {

using attention::Range;
using attention::Sequence;

// Rows of a block, in vectors: a register panel of the products with AVX-512. The narrower vectors take more than one,
// for the sums over the rows of a block (dK, dV) should be long.
constexpr int kBlockVectors = kLanes == 16 ? 4 : 6;
constexpr int kBlockRows = kBlockVectors * kLanes;

constexpr int64_t kShortTile = 32;

DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DLOPS_INLINE int64_t whole_vectors(int64_t n) { return ceil_div(n, kLanes) * kLanes; }

// Row i of sequence `s` = entry b, head h, in a tensor with rows like q's; and in one like k's.
template <class T, class Heads>
DLOPS_INLINE T* query_row(const Heads& x, const Sequence& s, int64_t b, int64_t h, int64_t i) {
  return static_cast<T*>(x.data) + b * x.batch + h * x.head + (s.q_begin + i) * x.row;
}
template <class T, class Heads>
DLOPS_INLINE T* key_row(const Heads& x, const Sequence& s, int64_t b, int64_t h, int64_t j) {
  return static_cast<T*>(x.data) + b * x.batch + h * x.head + (s.k_begin + j) * x.row;
}

// sums[r] = a_r [d] . b_r [d] for `count` <= kLanes rows: a vector of sums per row, transposed and added.
template <class T>
DLOPS_INLINE Vec dot_rows(const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t count, int64_t d) {
  Vec sums[kLanes];
  for (int64_t r = 0; r < kLanes; r++) {
    sums[r] = zero();
    if (r >= count) continue;
    const T *x = a + r * a_row, *y = b + r * b_row;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) sums[r] = fma(load(x + i), load(y + i), sums[r]);
    const int rest = static_cast<int>(d - i);
    if (rest > 0) sums[r] = fma(load_part(x + i, rest), load_part(y + i, rest), sums[r]);
  }
  transpose(sums);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) sums[i] = sums[i] + sums[i + half];
  return sums[0];
}

// Per row of a block: lse, delta, w, and whether the row sees any key (1 or 0). Zeros for rows that see none and in
// lanes past the rows.
struct RowNumbers {
  float lse[kBlockRows], delta[kBlockRows], weight[kBlockRows], sees[kBlockRows];
  bool weighted;  // some weight is not 1

  template <class T>
  __attribute__((noinline)) void read(const AttentionBackwardParams& p, const Sequence& s, int64_t b,
                                      int64_t h, Range rows) {
    const int64_t count = rows.end - rows.begin;
    const float* lse_of = p.lse.data + b * p.lse.batch + h * p.lse.head + s.q_begin + rows.begin;
    const float* dlse_of =
        p.dlse.data ? p.dlse.data + b * p.dlse.batch + h * p.dlse.head + s.q_begin + rows.begin : nullptr;
    weighted = p.sinks != nullptr;
    for (int64_t first = 0; first < kBlockRows; first += kLanes)
      store(delta + first, first < count
                               ? dot_rows(query_row<const T>(p.dout, s, b, h, rows.begin + first), p.dout.row,
                                          query_row<const T>(p.out, s, b, h, rows.begin + first), p.out.row,
                                          attention::lesser(count - first, kLanes), p.dv)
                               : zero());
    for (int64_t r = 0; r < kBlockRows; r++) {
      lse[r] = r < count ? lse_of[r] : kMinusInf;
      sees[r] = weight[r] = lse[r] == kMinusInf ? 0.f : 1.f;
      if (lse[r] == kMinusInf) {
        lse[r] = delta[r] = 0;
        weighted |= r < count;
        continue;
      }
      if (p.sinks)
        weight[r] = static_cast<float>(1 / (1 + __builtin_exp(static_cast<double>(p.sinks[h]) - lse[r])));
      delta[r] *= weight[r];
      if (dlse_of) delta[r] -= dlse_of[r];
    }
  }
};

// Floats from row to row of such copies: never a multiple of 512 bytes, or the rows of a block would share few sets of
// L1.
DLOPS_INLINE int64_t natural_stride(int64_t d) {
  return whole_vectors(d) + (whole_vectors(d) % 128 ? 0 : 16);
}

// from [count][d] -> float32 [count][natural_stride(d)], zeros behind d, row r times factor[r] (null: 1; a factor of 0
// gives zeros, whatever the row holds). Rows that are so already stay where they are.
template <class T>
__attribute__((noinline)) FloatRows natural_rows(const T* from, int64_t row_stride, int64_t count, int64_t d,
                                                 const float* factor, float* to) {
  if constexpr (__is_same(T, float))
    if (!factor && d % kLanes == 0 && row_stride % 128) return {from, row_stride};
  const int64_t wide = whole_vectors(d), stride = natural_stride(d);
  for (int64_t r = 0; r < count; r++) {
    const T* row = from + r * row_stride;
    float* out = to + r * stride;
    const float f = factor ? factor[r] : 1.f;
    if (f == 0.f) {
      memset(out, 0, static_cast<size_t>(wide) * sizeof(float));
      continue;
    }
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(out + i, load(row + i) * set1(f));
    if (i < d) store(out + i, load_part(row + i, static_cast<int>(d - i)) * set1(f));
  }
  return {to, stride};
}

// Some vectors of a block of rows, in float32.
struct RowSlice {
  const float *q_lanes, *dout_lanes;  // [d][lane_stride] times query_scale, [dv][lane_stride] times w
  int64_t lane_stride;
  FloatRows q, dout;         // [count][d], [count][dv] times w
  const float *lse, *delta;  // see RowNumbers
  Range rows;                // in the sequence
  Vectors v;
  int64_t count() const { return rows.end - rows.begin; }
  int vectors() const { return v.end - v.begin; }
  int64_t lanes() const { return vectors() * kLanes; }
};

template <class T>
class RowBlock {
 public:
  static int64_t floats(const AttentionProblem& p) {
    return kBlockRows * (p.d + p.dv + natural_stride(p.d) + natural_stride(p.dv));
  }
  RowBlock(const AttentionProblem& p, float* memory)
      : q_lanes_(memory),
        dout_lanes_(q_lanes_ + kBlockRows * p.d),
        q_copy_(dout_lanes_ + kBlockRows * p.dv),
        dout_copy_(q_copy_ + kBlockRows * natural_stride(p.d)) {}

  void read(const AttentionBackwardParams& p, const Sequence& s, int64_t b, int64_t h, Range rows) {
    rows_ = rows;
    const int64_t count = rows.end - rows.begin;
    lanes_ = whole_vectors(count);
    numbers_.template read<T>(p, s, b, h, rows);
    q_ = natural_rows(query_row<const T>(p.q, s, b, h, rows.begin), p.q.row, count, p.d,
                      numbers_.weighted ? numbers_.sees : nullptr, q_copy_);
    dout_ = natural_rows(query_row<const T>(p.dout, s, b, h, rows.begin), p.dout.row, count, p.dv,
                         numbers_.weighted ? numbers_.weight : nullptr, dout_copy_);
    pack_rows(q_.data, q_.stride, count, p.d, query_scale(p), q_lanes_, lanes_);
    pack_rows(dout_.data, dout_.stride, count, p.dv, 1.f, dout_lanes_, lanes_);
  }

  int64_t lanes() const { return lanes_; }
  RowSlice slice(Vectors v) const {
    const int64_t first = v.begin * kLanes;
    return {q_lanes_ + first,
            dout_lanes_ + first,
            lanes_,
            {q_.data + first * q_.stride, q_.stride},
            {dout_.data + first * dout_.stride, dout_.stride},
            numbers_.lse + first,
            numbers_.delta + first,
            {rows_.begin + first, attention::lesser(rows_.begin + v.end * kLanes, rows_.end)},
            v};
  }

 private:
  float *q_lanes_, *dout_lanes_, *q_copy_, *dout_copy_;
  FloatRows q_, dout_;
  RowNumbers numbers_;
  Range rows_;
  int64_t lanes_;
};

// The tile of keys from `begin` on that the rows take next, and the vectors of rows that see any of it. Where the rows'
// windows end one after the other (the diagonal of a causal mask), tiles are short, and leave out the vectors that see
// nothing. Tiles begin at multiples of `aligned` keys from `origin`.
struct Tile {
  Range keys;
  Vectors v;
};
DLOPS_INLINE Tile next_tile(const AttentionProblem& p, const Sequence& s, Range rows, Range keys,
                            int64_t origin, int64_t aligned) {
  Range tile{keys.begin, attention::lesser(keys.begin + kTileKeys, keys.end)};
  if (!attention::all_visible(p, s, rows, tile)) {
    const int64_t all_see = attention::keys_of_row(p, s, rows.begin).end;
    const int64_t plain_end = all_see - (all_see - origin) % aligned;
    if (plain_end < tile.end)
      tile.end =
          attention::lesser(tile.end, tile.begin + attention::greater(kShortTile, plain_end - tile.begin));
  }
  Vectors v{0, static_cast<int>(ceil_div(rows.end - rows.begin, kLanes))};
  auto sees = [&](int j) {
    const int64_t first = rows.begin + j * kLanes;
    const Range seen = attention::keys_of_rows(p, s, {first, attention::lesser(first + kLanes, rows.end)});
    return seen.begin < tile.end && tile.begin < seen.end;
  };
  while (v.begin + 1 < v.end && !sees(v.begin)) v.begin++;
  while (v.begin + 1 < v.end && !sees(v.end - 1)) v.end--;
  return {tile, v};
}

}  // namespace
}  // namespace dlops
