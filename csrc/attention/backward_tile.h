// From scores and V dO^T to probabilities and gradients of the scores, for a tile [keys][lanes] with rows in lanes.
#pragma once
#include "../cpu/gemm.h"
#include "backward_rows.h"

namespace dlops {
namespace {

// C [m, vectors kLanes] = A B (or C + A B), in panels of kTileVectors vectors or, where that does not divide, a little
// less.
template <Into into, bool kAlong>
DLOPS_INLINE void product(int vectors, int64_t m, int64_t depth, const float* a, int64_t stride,
                          const float* b, int64_t b_row, float* c, int64_t c_row) {
  for (int done = 0; done < vectors;) {
    const int rest = vectors - done, panels = (rest + kTileVectors - 1) / kTileVectors;
    const int n = (rest + panels - 1) / panels;
    const float* from = b + done * kLanes;
    float* to = c + done * kLanes;
    if (n == 1) multiply<1, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if (n == 2) multiply<2, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if (n == 3) multiply<3, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if constexpr (kTileVectors >= 4)
      if (n == 4) multiply<4, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    done += n;
  }
}

// Subtracting before scaling to powers of 2 keeps the digits of large scores.
DLOPS_INLINE Vec exp_difference(Vec s, Vec lse) { return exp2((s - lse) * set1(kLog2e)); }

// Where every row sees every key: s becomes P = exp(s - lse), dp becomes dS = P (dp - delta).
__attribute__((noinline)) void plain_gradients(int64_t keys, const RowSlice& rows, float* s, float* dp) {
  const int vectors = rows.vectors();
  const int64_t lanes = rows.lanes();
  for (int64_t t = 0; t < keys; t++)
    for (int j = 0; j < vectors; j++) {
      const int64_t at = t * lanes + j * kLanes;
      const Vec probability = exp_difference(load(s + at), load(rows.lse + j * kLanes));
      store(s + at, probability);
      store(dp + at, probability * (load(dp + at) - load(rows.delta + j * kLanes)));
    }
}

// With hidden elements (scores of -inf), which get zeros whatever dp holds. kept: lanes of -1, or 0 where the element
// is dropped; others are multiplied by keep = 1 / (1 - p). s becomes P after dropout.
DLOPS_INLINE void masked_gradient(const RowSlice& rows, int j, VecI kept, float keep, float* s, float* dp) {
  const Vec score = load(s), lse = load(rows.lse + j * kLanes), delta = load(rows.delta + j * kLanes);
  const VecI visible = score != set1(kMinusInf);
  const Vec probability = select(visible, exp_difference(score, lse), zero());
  const Vec from_value = select(kept, load(dp) * set1(keep), zero());
  store(s, select(kept, probability * set1(keep), zero()));
  store(dp, select(visible, probability * (from_value - delta), zero()));
}

__attribute__((noinline)) void masked_gradients(int64_t keys, const RowSlice& rows, float* s, float* dp) {
  const int vectors = rows.vectors();
  const int64_t lanes = rows.lanes();
  for (int64_t t = 0; t < keys; t++)
    for (int j = 0; j < vectors; j++)
      masked_gradient(rows, j, set1i(-1), 1.f, s + t * lanes + j * kLanes, dp + t * lanes + j * kLanes);
}

__attribute__((noinline)) void dropped_gradients(const AttentionProblem& p, const Dropout& dropout,
                                                 Range keys, const RowSlice& rows, float* s, float* dp) {
  const int64_t lanes = rows.lanes();
  const float keep = 1 / (1 - p.dropout_p);
  dropout.each(rows.rows.begin, rows.vectors(), keys, [&](int64_t t, int j, VecI kept) {
    masked_gradient(rows, j, kept, keep, s + t * lanes + j * kLanes, dp + t * lanes + j * kLanes);
  });
}

// s: scores, becomes P after dropout. dp: V dO^T, becomes dS, the gradient of the scores behind softcap, bias and mask.
DLOPS_INLINE void score_gradients(const AttentionProblem& p, const Sequence& sequence, int64_t b, int64_t h,
                                  Range keys, const RowSlice& rows, float* s, float* dp) {
  const int64_t count = keys.end - keys.begin;
  if (p.dropout_p > 0)
    dropped_gradients(p, Dropout(p, b, h), keys, rows, s, dp);
  else if (p.mask.kind == MaskKind::none && attention::all_visible(p, sequence, rows.rows, keys))
    plain_gradients(count, rows, s, dp);
  else
    masked_gradients(count, rows, s, dp);
}

// Which keys of a tile some row sees: 0 times what the others hold is no zero where they hold NaN. seen [keys]. Returns
// how many keys are seen.
__attribute__((noinline)) int64_t find_seen(int64_t keys, const RowSlice& rows, const float* s, bool* seen) {
  int64_t count = 0;
  for (int64_t t = 0; t < keys; t++) {
    VecI any = set1i(0);
    for (int j = 0; j < rows.vectors(); j++)
      any |= (load(s + t * rows.lanes() + j * kLanes) != set1(kMinusInf)) &
             (lane_index() < static_cast<int32_t>(rows.count() - j * kLanes));
    seen[t] = false;
    for (int i = 0; i < kLanes; i++) seen[t] |= any[i] != 0;
    count += seen[t];
  }
  return count;
}

// The scores of a tile from its products. Returns how many of its keys some row sees, and which.
DLOPS_INLINE int64_t finish_scores(const AttentionProblem& p, const ScoreBlock& block, const RowSlice& rows,
                                   Range keys, float factor, float* s, float* scratch, float* cap_slope,
                                   bool* seen) {
  const int64_t count = keys.end - keys.begin;
  if (block.plain(keys, rows.v)) return count;
  block.adjust(keys, rows.v, factor, s, scratch, cap_slope);
  return p.mask.kind == MaskKind::none ? count : find_seen(count, rows, s, seen);
}

}  // namespace
}  // namespace dlops
