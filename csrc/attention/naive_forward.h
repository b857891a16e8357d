// The textbook: one row at a time, all of its scores in memory, softmax in two passes over them. For reading, and as a
// rung of the tests.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "dropout.h"
#include "geometry.h"
#include "scores.h"

namespace dlops {
namespace {

// Element (i, j) of the mask of batch entry b, head h.
inline float mask_at(const MaskIn& m, int64_t b, int64_t h, int64_t i, int64_t j) {
  float value = 0;
  with_mask(m.kind, [&](auto* type) {
    const auto* data = static_cast<decltype(type)>(const_cast<void*>(m.data));
    value = load1(data + b * m.batch + h * m.head + i * m.row + j * m.key);
  });
  return value;
}

// 0, or 1 / (1 - dropout_p).
inline float dropout_at(const AttentionProblem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (p.dropout_p <= 0) return 1;
  using philox::Scalar;
  uint32_t words[4];
  attention::dropout_words<Scalar>(static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i),
                                   static_cast<uint32_t>(b * p.heads + h), static_cast<uint32_t>(p.rng[1]),
                                   Scalar::Key(static_cast<uint64_t>(p.rng[0])), words);
  return words[j % 4] >= attention::dropout_threshold(p.dropout_p) ? 1 / (1 - p.dropout_p) : 0;
}

// Row 0 of a head of sequence s.
template <class T, class Heads>
T* first_row(const Heads& x, int64_t b, int64_t head, int64_t begin) {
  return static_cast<T*>(const_cast<void*>(static_cast<const void*>(x.data))) + b * x.batch + head * x.head +
         begin * x.row;
}

// s_ij of params.h.
template <class T>
float score_at(const AttentionProblem& p, const attention::Sequence& s, int64_t b, int64_t h, int64_t i,
               int64_t j, const T* q, const T* k) {
  float score = 0;
  for (int64_t c = 0; c < p.d; c++) score += load1(q + c) * load1(k + c);
  score *= p.scale;
  if (p.softcap > 0) score = p.softcap * __builtin_tanhf(score / p.softcap);
  if (p.alibi_slopes) {
    const int64_t distance = i + s.shift - j;
    score -= p.alibi_slopes[b * p.alibi_batch + h] * static_cast<float>(distance < 0 ? -distance : distance);
  }
  const float mask = mask_at(p.mask, b, h, i, j);
  return mask == kMinusInf ? mask : score + mask;  // even of NaN
}

// scores, sum: scratch for k_len and dv numbers.
template <class T>
void forward_row_naive(const AttentionForwardParams& p, int64_t b, int64_t h, int64_t i, float* scores,
                       float* sum) {
  const attention::Sequence s = attention::sequence_of(p, b);
  if (i >= s.q_len) return;
  const int64_t kv = h / (p.heads / p.kv_heads);
  const T* q = first_row<T>(p.q, b, h, s.q_begin + i);
  const T* k = first_row<T>(p.k, b, kv, s.k_begin);
  const T* v = first_row<T>(p.v, b, kv, s.k_begin);
  T* out = first_row<T>(p.out, b, h, s.q_begin + i);
  const attention::Range keys = attention::keys_of_row(p, s, i);

  float top = kMinusInf;
  for (int64_t j = keys.begin; j < keys.end; j++) {
    scores[j] = score_at(p, s, b, h, i, j, q, k + j * p.k.row);
    if (top == top && !(scores[j] <= top)) top = scores[j];  // NaN too, and then for good
  }
  float total = 0;
  for (int64_t c = 0; c < p.dv; c++) sum[c] = 0;
  if (top != kMinusInf)
    for (int64_t j = keys.begin; j < keys.end; j++) {
      if (scores[j] == kMinusInf) continue;
      const float weight = __builtin_expf(scores[j] - top);
      total += weight;
      const float dropped = weight * dropout_at(p, b, h, i, j);
      for (int64_t c = 0; c < p.dv; c++) sum[c] += dropped * load1(v + j * p.v.row + c);
    }
  p.lse.data[b * p.lse.batch + h * p.lse.head + s.q_begin + i] =
      top + (top == kMinusInf ? 0 : __builtin_logf(total));
  if (p.sinks) total += __builtin_expf(p.sinks[h] - top);
  for (int64_t c = 0; c < p.dv; c++) store1(out + c, top == kMinusInf ? 0 : sum[c] / total);
}

template <class T>
void forward_naive(const AttentionForwardParams& p) {
  parallel_for(p.threads, p.batch * p.heads, [&](int64_t head) {
    const cpu::Scratch scratch(sizeof(float) * static_cast<size_t>(p.k_len + p.dv));
    float* sum = scratch.floats();
    for (int64_t i = 0; i < p.q_len; i++)
      forward_row_naive<T>(p, head / p.heads, head % p.heads, i, sum + p.dv, sum);
  });
}

}  // namespace
}  // namespace dlops
