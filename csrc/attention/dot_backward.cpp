// The backward pass for bfloat16 on CPUs with its dot product: all five products take pairs of bfloat16 and sum in
// float32. P and dS are rounded to bfloat16, as the products' operands. Which pairs a product needs:
//
//   S^T = K Q^T, dP^T = V dO^T    pairs along d        K, V in place         Q^T, dO^T [d / 2][lanes]
//   dV += P^T dO, dK += dS^T Q    pairs along rows     P^T, dS^T [keys][lanes] in order     dO, Q [rows / 2][d]
//   dQ^T += K^T dS^T              pairs along keys     K [keys / 2][d]       dS^T [keys / 2][lanes]
#include "backward.h"
#include "backward_tile.h"
#include "cpu_parts.h"
#include "pairs.h"

namespace dlops {

namespace attention_avx512_parts {
void backward(const AttentionBackwardParams&);
}

namespace {

DLOPS_INLINE int64_t pairs(int64_t n) { return (n + 1) / 2; }
DLOPS_INLINE void store_pairs(Pair* p, VecU v) { memcpy(p, &v, sizeof v); }

// Rounded: the 32 values of lo, then hi, in order.
DLOPS_INLINE VecU round_in_order(Vec lo, Vec hi) { return (VecU)_mm512_cvtne2ps_pbh((__m512)hi, (__m512)lo); }

// 32 values of a and of b: the pairs (a0, b0) ... (a15, b15) in low, the others in high.
DLOPS_INLINE void zip_values(VecU a, VecU b, VecU& low, VecU& high) {
  typedef uint16_t Values __attribute__((vector_size(64)));
  Values first, second;
  for (int i = 0; i < 32; i++) {
    first[i] = static_cast<uint16_t>(i / 2 + (i % 2 ? 32 : 0));
    second[i] = static_cast<uint16_t>(16 + i / 2 + (i % 2 ? 32 : 0));
  }
  low = (VecU)__builtin_shuffle((Values)a, (Values)b, first);
  high = (VecU)__builtin_shuffle((Values)a, (Values)b, second);
}

template <Into into, bool kAlong>
DLOPS_INLINE void product_dot(int vectors, int64_t m, int64_t depth, const Pair* a, int64_t stride,
                              const Pair* b, int64_t b_row, float* c, int64_t c_row) {
  for (int done = 0; done < vectors;) {
    const int rest = vectors - done, panels = (rest + kTileVectors - 1) / kTileVectors;
    const int n = (rest + panels - 1) / panels;
    const Pair* from = b + done * kLanes;
    float* to = c + done * kLanes;
    if (n == 1) multiply_pairs<1, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if (n == 2) multiply_pairs<2, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if (n == 3) multiply_pairs<3, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    if (n == 4) multiply_pairs<4, into, kAlong>(m, depth, a, stride, from, b_row, to, c_row);
    done += n;
  }
}

// Rows of bfloat16 as pairs along d, zeros behind an odd d: in place where that can be, or a copy in `to`. Row r is
// multiplied by factor[r] (null: 1; a factor of 0 gives zeros, whatever the row holds).
struct PairRows {
  const Pair* data;
  int64_t stride;  // in elements
  const Bfloat* elements() const { return reinterpret_cast<const Bfloat*>(data); }
  const Pair* row(int64_t r) const { return reinterpret_cast<const Pair*>(elements() + r * stride); }
};
__attribute__((noinline)) PairRows pair_rows(const Bfloat* from, int64_t row_stride, int64_t count, int64_t d,
                                             const float* factor, float* to) {
  if (!factor && d % 2 == 0) return {reinterpret_cast<const Pair*>(from), row_stride};
  const int64_t stride = 2 * pairs(d);
  for (int64_t r = 0; r < count; r++) {
    Bfloat* row = reinterpret_cast<Bfloat*>(to) + r * stride;
    row[stride - 1].bits = 0;
    for (int64_t i = 0; i < d; i++) {
      if (!factor)
        row[i] = from[r * row_stride + i];
      else
        store1(row + i, factor[r] == 0.f ? 0.f : factor[r] * load1(from + r * row_stride + i));
    }
  }
  return {reinterpret_cast<const Pair*>(to), stride};
}

// What the last three products take, for a tile.
struct RoundedTile {
  Pair *probabilities, *gradients;  // [keys][lanes / 2], pairs along rows
  Pair* gradient_pairs;             // [keys / 2][lanes], pairs along keys
};

// get(at, j, p, ds): P and dS of element `at` of the tile, vector j of the rows.
template <class Get>
DLOPS_INLINE void round_tile(int64_t keys, int vectors, const RoundedTile& to, Get get) {
  const int64_t lanes = vectors * kLanes;
  for (int64_t t = 0; t < keys; t += 2)
    for (int j = 0; j < vectors; j += 2) {
      Vec p[2][2] = {{zero(), zero()}, {zero(), zero()}}, ds[2][2] = {{zero(), zero()}, {zero(), zero()}};
      VecU rounded[2];
      const bool pair_of_vectors = j + 1 < vectors, pair_of_keys = t + 1 < keys;
#pragma GCC unroll 2
      for (int k = 0; k < 2; k++) {
        const int64_t at = (t + k) * lanes + j * kLanes;
        if (k == 0 || pair_of_keys) {
          get(at, j, p[k][0], ds[k][0]);
          if (pair_of_vectors) get(at + kLanes, j + 1, p[k][1], ds[k][1]);
        }
        rounded[k] = round_in_order(ds[k][0], ds[k][1]);
        if (k == 1 && !pair_of_keys) break;
        const VecU probability = round_in_order(p[k][0], p[k][1]);
        const size_t bytes = pair_of_vectors ? 64 : 32;
        memcpy(to.probabilities + at / 2, &probability, bytes);
        memcpy(to.gradients + at / 2, &rounded[k], bytes);
      }
      VecU low, high;
      zip_values(rounded[0], rounded[1], low, high);
      store_pairs(to.gradient_pairs + t / 2 * lanes + j * kLanes, low);
      if (pair_of_vectors) store_pairs(to.gradient_pairs + t / 2 * lanes + (j + 1) * kLanes, high);
    }
}

class DotEngine {
 public:
  using T = Bfloat;

  static int64_t floats(const AttentionProblem& p, int64_t chunk) {
    const int64_t widths = whole_vectors(p.d) + whole_vectors(p.dv);
    const int64_t block = kBlockRows * (p.d + 2 * widths), tile = kTileKeys * (5 * kBlockRows + p.d);
    return block + tile + chunk * (2 * widths + p.d) + 64;
  }

  DotEngine(const AttentionBackwardParams& p, float* memory)
      : p_(p), dk_stride_(whole_vectors(p.d)), dv_stride_(whole_vectors(p.dv)) {
    auto take = [&](int64_t count) {
      float* begin = memory;
      memory += whole_vectors(count);
      return begin;
    };
    auto take_pairs = [&](int64_t count) { return reinterpret_cast<Pair*>(take(count)); };
    dq_ = take(kBlockRows * p.d);
    q_lanes_ = take_pairs(kBlockRows * pairs(p.d));
    dout_lanes_ = take_pairs(kBlockRows * pairs(p.dv));
    q_copy_ = take(kBlockRows * pairs(p.d));
    dout_copy_ = take(kBlockRows * pairs(p.dv));
    q_pairs_ = take_pairs(kBlockRows / 2 * dk_stride_);
    dout_pairs_ = take_pairs(kBlockRows / 2 * dv_stride_);
    scores_ = take(kTileKeys * kBlockRows);
    gradients_ = take(kTileKeys * kBlockRows);
    cap_slope_ = take(kTileKeys * kBlockRows);
    rounded_ = {take_pairs(kTileKeys * kBlockRows / 2), take_pairs(kTileKeys * kBlockRows / 2),
                take_pairs(kTileKeys * kBlockRows / 2)};
    seen_keys_ = take_pairs(kTileKeys / 2 * p.d);
    memory_ = memory;
  }

  void begin(const Sequence& s, int64_t b, int64_t kv_head, Range chunk) {
    s_ = s;
    b_ = b;
    kv_head_ = kv_head;
    chunk_ = chunk;
    const int64_t keys = chunk.end - chunk.begin;
    dk_ = memory_;
    dv_ = dk_ + keys * dk_stride_;
    memset(dk_, 0, static_cast<size_t>(keys * (dk_stride_ + dv_stride_)) * sizeof(float));
    k_pairs_ = reinterpret_cast<Pair*>(dv_ + keys * dv_stride_);
    float* copies = dv_ + keys * dv_stride_ + pairs(keys) * p_.d;
    k_ = pair_rows(key_row<const T>(p_.k, s, b, kv_head, chunk.begin), p_.k.row, keys, p_.d, nullptr, copies);
    v_ = pair_rows(key_row<const T>(p_.v, s, b, kv_head, chunk.begin), p_.v.row, keys, p_.dv, nullptr,
                   copies + keys * pairs(p_.d));
    if (p_.dq.data) interleave_rows(k_.elements(), k_.stride, keys, p_.d, k_pairs_, p_.d);
  }

  const float* rows(int64_t h, Range rows, Range keys) {
    const ScoreBlock block(p_, s_, b_, h, rows);
    read_rows(h, rows);
    if (p_.dq.data) memset(dq_, 0, static_cast<size_t>(p_.d * lanes_) * sizeof(float));
    keys.begin -= (keys.begin - chunk_.begin) % 2;  // tiles start at whole pairs of the chunk's keys
    while (keys.begin < keys.end) {
      const Tile next = next_tile(p_, s_, rows, keys, chunk_.begin, 2);
      tile(block, h, slice(rows, next.v), next.keys);
      keys.begin = next.keys.end;
    }
    return dq_;
  }

  void end() {
    const int64_t keys = chunk_.end - chunk_.begin;
    if (p_.dk.data)
      write_rows(dk_, dk_stride_, p_.scale, key_row<T>(p_.dk, s_, b_, kv_head_, chunk_.begin), p_.dk.row,
                 keys, p_.d);
    if (p_.dv_.data)
      write_rows(dv_, dv_stride_, 1.f, key_row<T>(p_.dv_, s_, b_, kv_head_, chunk_.begin), p_.dv_.row, keys,
                 p_.dv);
  }

 private:
  void read_rows(int64_t h, Range rows) {
    const int64_t count = rows.end - rows.begin;
    lanes_ = whole_vectors(count);
    numbers_.read<T>(p_, s_, b_, h, rows);
    const bool weighted = numbers_.weighted;
    const PairRows q = pair_rows(query_row<const T>(p_.q, s_, b_, h, rows.begin), p_.q.row, count, p_.d,
                                 weighted ? numbers_.sees : nullptr, q_copy_);
    const PairRows dout = pair_rows(query_row<const T>(p_.dout, s_, b_, h, rows.begin), p_.dout.row, count,
                                    p_.dv, weighted ? numbers_.weight : nullptr, dout_copy_);
    pack_pairs(q.elements(), q.stride, count, p_.d, q_lanes_, lanes_);
    pack_pairs(dout.elements(), dout.stride, count, p_.dv, dout_lanes_, lanes_);
    if (p_.dk.data) interleave_rows(q.elements(), q.stride, count, p_.d, q_pairs_, dk_stride_);
    if (p_.dv_.data) interleave_rows(dout.elements(), dout.stride, count, p_.dv, dout_pairs_, dv_stride_);
  }

  // What the shared code of a tile reads of some of the block's vectors; it takes no float32 rows from here.
  RowSlice slice(Range rows, Vectors v) const {
    const int64_t first = v.begin * kLanes;
    return {nullptr,
            nullptr,
            lanes_,
            {},
            {},
            numbers_.lse + first,
            numbers_.delta + first,
            {rows.begin + first, attention::lesser(rows.begin + v.end * kLanes, rows.end)},
            v};
  }

  void tile(const ScoreBlock& block, int64_t h, const RowSlice& rows, Range keys) {
    const int64_t count = keys.end - keys.begin, at = keys.begin - chunk_.begin, lanes = rows.lanes();
    const int64_t first = rows.v.begin * kLanes;  // row and lane of the block
    product_dot<Into::overwrite, true>(rows.vectors(), count, pairs(p_.d), k_.row(at), k_.stride,
                                       q_lanes_ + first, lanes_, scores_, lanes);
    const bool plain = block.plain(keys, rows.v) && p_.dropout_p <= 0;
    bool seen[kTileKeys];
    int64_t visible = count;
    if (!plain) {
      // Without a mask too there are keys that no row sees: a tile starts at a whole pair.
      block.adjust(keys, rows.v, query_scale(p_), scores_, gradients_, p_.softcap > 0 ? cap_slope_ : nullptr);
      visible = find_seen(count, rows, scores_, seen);
      if (visible == 0) return;
    }
    if (p_.dq.data || p_.dk.data)
      product_dot<Into::overwrite, true>(rows.vectors(), count, pairs(p_.dv), v_.row(at), v_.stride,
                                         dout_lanes_ + first, lanes_, gradients_, lanes);
    if (plain) {
      round_plain(rows, count);
    } else {
      score_gradients(p_, s_, b_, h, keys, rows, scores_, gradients_);
      round_masked(rows, count);
    }
    if (p_.dv_.data)
      product_dot<Into::add, true>(static_cast<int>(dv_stride_ / kLanes), count, pairs(rows.count()),
                                   rounded_.probabilities, lanes, dout_pairs_ + first / 2 * dv_stride_,
                                   dv_stride_, dv_ + at * dv_stride_, dv_stride_);
    if (p_.dk.data)
      product_dot<Into::add, true>(static_cast<int>(dk_stride_ / kLanes), count, pairs(rows.count()),
                                   rounded_.gradients, lanes, q_pairs_ + first / 2 * dk_stride_, dk_stride_,
                                   dk_ + at * dk_stride_, dk_stride_);
    if (!p_.dq.data) return;
    const Pair* k = k_pairs_ + at / 2 * p_.d;
    // An odd tile shares its last pair with a key that it does not have.
    if (visible < count || (count % 2 != 0 && keys.end < chunk_.end))
      k = seen_keys(k, count, seen, visible == count);
    product_dot<Into::add, false>(rows.vectors(), p_.d, pairs(count), k, p_.d, rounded_.gradient_pairs, lanes,
                                  dq_ + first, lanes_);
  }

  __attribute__((noinline)) void round_plain(const RowSlice& rows, int64_t count) {
    const Vec factor = set1(query_scale(p_));
    round_tile(count, rows.vectors(), rounded_, [&](int64_t at, int j, Vec& p, Vec& ds) {
      p = exp_difference(load(scores_ + at) * factor, load(rows.lse + j * kLanes));
      ds = p * (load(gradients_ + at) - load(rows.delta + j * kLanes));
    });
  }

  __attribute__((noinline)) void round_masked(const RowSlice& rows, int64_t count) {
    const bool capped = p_.softcap > 0;
    round_tile(count, rows.vectors(), rounded_, [&](int64_t at, int, Vec& p, Vec& ds) {
      p = load(scores_ + at);
      ds = load(gradients_ + at);
      if (capped) ds = ds * load(cap_slope_ + at);
    });
  }

  // A copy of the pairs of keys with zeros for those that no row sees, and for the one behind an odd count.
  const Pair* seen_keys(const Pair* k, int64_t count, const bool* seen, bool all_seen) {
    for (int64_t t = 0; t < count; t += 2) {
      const bool even = all_seen || seen[t], odd = t + 1 < count && (all_seen || seen[t + 1]);
      for (int64_t i = t / 2 * p_.d; i < (t / 2 + 1) * p_.d; i++)
        seen_keys_[i] = {even ? k[i].first : uint16_t{0}, odd ? k[i].second : uint16_t{0}};
    }
    return seen_keys_;
  }

  const AttentionBackwardParams& p_;
  int64_t dk_stride_, dv_stride_;
  float *dq_, *q_copy_, *dout_copy_, *scores_, *gradients_, *cap_slope_, *memory_;
  Pair *q_lanes_, *dout_lanes_, *q_pairs_, *dout_pairs_, *seen_keys_;
  RoundedTile rounded_;
  Sequence s_;
  int64_t b_, kv_head_;
  Range chunk_;
  float *dk_, *dv_;  // [chunk][stride]
  PairRows k_, v_;   // of the chunk
  Pair* k_pairs_;
  RowNumbers numbers_;
  int64_t lanes_;
};

}  // namespace

namespace DLOPS_PARTS {

void backward(const AttentionBackwardParams& p) {
  if (p.dtype != Dtype::bf16) return attention_avx512_parts::backward(p);
  if (p.dq.data || p.dk.data || p.dv_.data) backward_chunks<DotEngine>(p);
  if (!p.dmask.data && !p.dsinks) return;
  AttentionBackwardParams rest = p;
  rest.dq.data = rest.dk.data = rest.dv_.data = nullptr;
  attention_avx512_parts::backward(rest);
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
