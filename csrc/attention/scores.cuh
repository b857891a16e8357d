// What happens between the two products, element by element: from q . k to a score, who sees whom, what is dropped.
// Every CUDA kernel of the family takes it from here.
//
// Rows i and keys j count from the start of their sequence. They are 32-bit: see fits_int.
#pragma once
#include "../cuda/launch.h"
#include "dropout.h"
#include "geometry.h"

namespace dlops::attention {

constexpr float kLog2e = 1.4426950408889634f;  // exp(x) = exp2(kLog2e x)
constexpr float kNegativeInfinity = -__builtin_inff();

// Host: kernels without extras compute scale * dot and nothing else. Windows, lengths, packing and sinks are no extras.
// A scale <= 0 counts as one: without extras the largest dot product has the largest score.
inline bool has_extras(const AttentionProblem& p) {
  return p.softcap > 0 || p.alibi_slopes || p.mask.kind != MaskKind::none || p.dropout_p > 0 ||
         !(p.scale > 0);
}

// Host: rows and keys, and those of a last tile that is not whole, are ints.
inline bool fits_int(const AttentionProblem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;
  return p.q_len <= kMost && p.k_len <= kMost && p.batch * p.heads <= kMost;
}

// One head of one batch entry.
struct Head {
  int64_t batch, head, kv_head;
  Sequence sequence;
  int rows, keys, shift;  // of the sequence: q_len, k_len, shift
  float slope;            // ALiBi
  int64_t mask;           // the element of the mask for row 0 and key 0
};

DLOPS_DEVICE Head head_of(const AttentionProblem& p, int64_t batch, int64_t head) {
  Head h;
  h.batch = batch;
  h.head = head;
  h.kv_head = head / (p.heads / p.kv_heads);
  h.sequence = sequence_of(p, batch);
  h.rows = static_cast<int>(h.sequence.q_len);
  h.keys = static_cast<int>(h.sequence.k_len);
  h.shift = static_cast<int>(h.sequence.shift);
  h.slope = p.alibi_slopes ? p.alibi_slopes[batch * p.alibi_batch + head] : 0.f;
  h.mask = batch * p.mask.batch + head * p.mask.head;
  return h;
}

// Row i of q, out or their gradients; key j of k, v or theirs: the first element of its last dimension. H: HeadsIn or
// HeadsOut.
template <class H>
DLOPS_DEVICE int64_t row_at(const H& x, const Head& h, int64_t i) {
  return h.batch * x.batch + h.head * x.head + (h.sequence.q_begin + i) * x.row;
}
template <class H>
DLOPS_DEVICE int64_t key_at(const H& x, const Head& h, int64_t j) {
  return h.batch * x.batch + h.kv_head * x.head + (h.sequence.k_begin + j) * x.row;
}
template <class T, class H>
DLOPS_DEVICE T* row_of(const H& x, const Head& h, int64_t i) {
  return static_cast<T*>(x.data) + row_at(x, h, i);
}
template <class T, class H>
DLOPS_DEVICE T* key_of(const H& x, const Head& h, int64_t j) {
  return static_cast<T*>(x.data) + key_at(x, h, j);
}
// lse and dlse: [batch, head, row], of packed sequences [head, row].
template <class R>
DLOPS_DEVICE auto* lse_of(const R& x, const Head& h, int64_t i) {
  return x.data + h.batch * x.batch + h.head * x.head + h.sequence.q_begin + i;
}

// The keys that row i sees by window and length, counted from key n0: visible where begin <= j - n0 < end. `keys`, `shift`:
// the sequence's, as ints (a kernel's inner loop has few registers to spare).
struct Visible { int begin, end; };
DLOPS_DEVICE Visible visible_from(const AttentionProblem& p, int keys, int shift, int i, int n0) {
  const Range r = keys_of_row(p, Sequence{0, 0, 0, keys, shift}, i);
  return {static_cast<int>(r.begin) - n0, static_cast<int>(r.end) - n0};
}

// What the mask adds; -inf hides the key.
DLOPS_DEVICE float mask_at(const AttentionProblem& p, const Head& h, int i, int j) {
  const int64_t at = h.mask + i * p.mask.row + j * p.mask.key;
  switch (p.mask.kind) {
    case MaskKind::boolean: return static_cast<const uint8_t*>(p.mask.data)[at] ? 0.f : kNegativeInfinity;
    case MaskKind::f32: return static_cast<const float*>(p.mask.data)[at];
    case MaskKind::f16: return static_cast<float>(static_cast<const __half*>(p.mask.data)[at]);
    case MaskKind::bf16: return static_cast<float>(static_cast<const __nv_bfloat16*>(p.mask.data)[at]);
    default: return 0.f;
  }
}

struct Score {
  float value;
  float tanh;  // of the softcap, else 0: d value / d dot = scale (1 - tanh^2)
};

// With all extras. For i < q_len and j < k_len only: the mask is read.
DLOPS_DEVICE Score score_of(const AttentionProblem& p, const Head& h, float dot, int i, int j) {
  float s = dot * p.scale, t = 0.f;
  if (p.softcap > 0) {
    t = tanhf(s / p.softcap);
    s = p.softcap * t;
  }
  if (p.alibi_slopes) s -= h.slope * fabsf(static_cast<float>(i + h.shift - j));
  if (p.mask.kind != MaskKind::none) {
    const float m = mask_at(p, h, i, j);
    s = m == kNegativeInfinity ? m : s + m;  // a hidden key may hold NaN
  }
  return {s, t};
}

// ---- dropout ----

struct Dropout {
  philox::Scalar::Key key;
  uint32_t offset, head, threshold;

  DLOPS_DEVICE Dropout(const AttentionProblem& p, const Head& h)
      : key(p.dropout_p > 0 ? static_cast<uint64_t>(p.rng[0]) : 0),
        offset(p.dropout_p > 0 ? static_cast<uint32_t>(p.rng[1]) : 0),
        head(static_cast<uint32_t>(h.batch * p.heads + h.head)),
        threshold(dropout_threshold(p.dropout_p)) {}

  // Bit b: row i keeps key 4 group + b.
  DLOPS_DEVICE uint32_t kept(int i, int group) const {
    uint32_t words[4], bits = 0;
    dropout_words<philox::Scalar>(static_cast<uint32_t>(group), static_cast<uint32_t>(i), head, offset, key,
                                  words);
#pragma unroll
    for (int b = 0; b < 4; b++) bits |= words[b] >= threshold ? 1u << b : 0u;
    return bits;
  }
  DLOPS_DEVICE bool keeps(int i, int j) const { return kept(i, j / 4) >> (j % 4) & 1; }

  // For the accumulator of mma_m16n8k16 whose rows begin at `row` and whose keys begin at `key0`, a multiple of 4: bit e
  // keeps d[e]. Two neighbouring lanes share the groups of two rows: each computes one, and they exchange. All lanes call.
  DLOPS_DEVICE uint32_t kept_fragment(int row, int key0) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, odd = lane & 1;
    const uint32_t mine = kept(row + lane / 4 + 8 * odd, key0 / 4 + lane % 4 / 2);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
    return odd ? other >> 2 | (mine >> 2) << 2 : (mine & 3) | (other & 3) << 2;
  }
  // The same for the transpose: its rows are keys from `key0` on, its columns are rows from `row` on, both multiples of 8.
  // Lane l holds keys l / 4 and l / 4 + 8 of rows 2 (l % 4) and the next: the four lanes of a group's four keys, 4 apart in
  // l / 4, compute a share each.
  DLOPS_DEVICE uint32_t kept_fragment_transposed(int row, int key0) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, in_group = lane / 4 % 4, quad = lane / 16;
    // share s of in_group: row 2 (l % 4) + s % 2, group of keys l / 4 (s < 2) or l / 4 + 8
    const uint32_t mine = kept(row + lane % 4 * 2 + in_group % 2, key0 / 4 + quad + (in_group < 2 ? 0 : 2));
    uint32_t bits = 0;
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const uint32_t share = __shfl_sync(0xffffffffu, mine, quad * 16 + s * 4 + lane % 4);
      bits |= (share >> in_group & 1) << s;  // d[0], d[1]: key l / 4; d[2], d[3]: key l / 4 + 8
    }
    return bits;
  }
};

}  // namespace dlops::attention
