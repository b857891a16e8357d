// Which rows and keys a sequence has, and which of them see each other. Shared by every kernel on every device.
#pragma once
#include "params.h"

#if defined(__CUDACC__)
#define DLOPS_ATTENTION_FN __host__ __device__ __forceinline__
#else
#define DLOPS_ATTENTION_FN inline __attribute__((always_inline))
#endif

namespace dlops::attention {

DLOPS_ATTENTION_FN int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_ATTENTION_FN int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Half open.
struct Range { int64_t begin, end; };

struct Sequence {
  int64_t q_begin, q_len;  // rows of q, from the start of the batch entry
  int64_t k_begin, k_len;
  int64_t shift;  // row i stands at key i + shift
};

// Lengths that a caller could not check (they are on a GPU) are clamped: no kernel reads past a tensor.
DLOPS_ATTENTION_FN Range packed(const int32_t* cu, int64_t b, int64_t total, int64_t longest) {
  const int64_t begin = lesser(greater(cu[b], 0), total);
  return {begin, lesser(lesser(greater(cu[b + 1], begin), total), begin + longest)};
}

DLOPS_ATTENTION_FN Sequence sequence_of(const AttentionProblem& p, int64_t b) {
  Sequence s{0, p.q_len, 0, p.k_len, 0};
  if (p.cu_q) {
    const Range r = packed(p.cu_q, b, p.total_q, p.q_len);
    s.q_begin = r.begin;
    s.q_len = r.end - r.begin;
  }
  if (p.cu_k) {
    const Range r = packed(p.cu_k, b, p.total_k, p.k_len);
    s.k_begin = r.begin;
    s.k_len = r.end - r.begin;
  }
  if (p.key_lengths) s.k_len = lesser(greater(p.key_lengths[b], 0), s.k_len);
  if (p.bottom_right) s.shift = s.k_len - s.q_len;
  return s;
}

// The keys that row i may see by window and length (a mask may hide more); may be empty.
DLOPS_ATTENTION_FN Range keys_of_row(const AttentionProblem& p, const Sequence& s, int64_t i) {
  const int64_t at = i + s.shift;
  const int64_t begin = p.window_left < 0 ? 0 : lesser(greater(at - p.window_left, 0), s.k_len);
  const int64_t end = p.window_right < 0 ? s.k_len : lesser(greater(at + p.window_right + 1, 0), s.k_len);
  return {begin, greater(begin, end)};
}

// The keys that any of the rows [rows.begin, rows.end) may see; at least one row.
DLOPS_ATTENTION_FN Range keys_of_rows(const AttentionProblem& p, const Sequence& s, Range rows) {
  const Range first = keys_of_row(p, s, rows.begin), last = keys_of_row(p, s, rows.end - 1);
  return {first.begin, greater(first.begin, last.end)};
}

// Whether every one of the rows sees every one of the keys by window and length.
DLOPS_ATTENTION_FN bool all_visible(const AttentionProblem& p, const Sequence& s, Range rows, Range keys) {
  const Range first = keys_of_row(p, s, rows.begin), last = keys_of_row(p, s, rows.end - 1);
  return last.begin <= keys.begin && keys.end <= first.end;
}

// The rows that may see any of the keys [keys.begin, keys.end); at least one key.
DLOPS_ATTENTION_FN Range rows_of_keys(const AttentionProblem& p, const Sequence& s, Range keys) {
  const int64_t begin =
      p.window_right < 0 ? 0 : lesser(greater(keys.begin - s.shift - p.window_right, 0), s.q_len);
  const int64_t end =
      p.window_left < 0 ? s.q_len : lesser(greater(keys.end - s.shift + p.window_left, 0), s.q_len);
  return {begin, greater(begin, end)};
}

}  // namespace dlops::attention
