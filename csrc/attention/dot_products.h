// The two products of the forward pass by bfloat16's dot product instruction (see products.h for what they are). Pairs
// run along the depth of a product: of S^T = K Q^T along d, so K is read as it lies and Q^T is packed in pairs; of O^T
// = V^T P^T along the keys, so V's rows are interleaved two by two, and P is rounded to bfloat16 in pairs of keys.
#pragma once
#include "pairs.h"
#include "products.h"

namespace dlops {
namespace {

class DotProducts {
 public:
  using Element = Bfloat;
  static constexpr int kBlockVectors = 8;  // two panels interleave V once
  static constexpr bool kScaled = false;   // scaling a bfloat16 Q would round it

  DotProducts(const AttentionProblem& p, const Bfloat* k, const Bfloat* v, int64_t lanes, Parts& parts)
      : p_(p),
        k_(k),
        v_(v),
        lanes_(lanes),
        depth_((p.d + 1) / 2),
        q_(reinterpret_cast<Pair*>(parts.take(depth_ * lanes))),
        even_k_(reinterpret_cast<Pair*>(parts.take(kTileKeys * depth_))),
        pairs_v_(reinterpret_cast<Pair*>(parts.take(kTileKeys / 2 * p.dv))) {}
  static int64_t floats(const AttentionProblem& p, int64_t lanes) {
    return (p.d + 1) / 2 * (lanes + kTileKeys) + kTileKeys / 2 * p.dv + 3 * 16;
  }

  void pack_queries(const Bfloat* q, int64_t rows) { pack_pairs(q, p_.q.row, rows, p_.d, q_, lanes_); }
  void load_keys(Range keys) {
    key_rows_ = reinterpret_cast<const Pair*>(k_ + keys.begin * p_.k.row);
    key_stride_ = p_.k.row;
    if (p_.d % 2 == 0) return;
    // An odd d's last pair would read past the row.
    for (int64_t t = 0; t < keys.end - keys.begin; t++) {
      Pair* row = even_k_ + t * depth_;
      row[depth_ - 1] = {0, 0};
      memcpy(row, k_ + (keys.begin + t) * p_.k.row, static_cast<size_t>(p_.d) * sizeof(Bfloat));
    }
    key_rows_ = even_k_;
    key_stride_ = 2 * depth_;
  }
  void load_values(Range keys) {
    interleave_rows(v_ + keys.begin * p_.v.row, p_.v.row, keys.end - keys.begin, p_.dv, pairs_v_, p_.dv);
  }
  void load_values(Range keys, const bool* hidden) {
    load_values(keys);
    for (int64_t t = 0; t < keys.end - keys.begin; t++)
      if (hidden[t])
        for (int64_t c = 0; c < p_.dv; c++) {
          Pair& pair = pairs_v_[t / 2 * p_.dv + c];
          (t % 2 ? pair.second : pair.first) = 0;
        }
  }

  template <int NR>
  void scores(int64_t count, int64_t first, float* s) const {
    multiply_pairs<NR, Into::overwrite, true>(count, depth_, key_rows_, key_stride_, q_ + first, lanes_, s,
                                              NR * kLanes);
  }

  // The weights take the place of the scores, as pairs of keys [ceil(count / 2)][NR vectors].
  template <int NR>
  void softmax(int64_t count, float factor, float* s, const RowState& state) const {
    Vec top[NR], base[NR], sum[NR];
    const Vec scale = set1(factor);
    for (int j = 0; j < NR; j++) top[j] = set1(kMinusInf);
    for (int64_t t = 0; t < count; t++)
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) top[j] = max(top[j], load(s + (t * NR + j) * kLanes));
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      base[j] = raise(max(top[j] * scale, load(state.top + j * kLanes)), j, state);
      sum[j] = zero();
    }
    Pair* pairs = reinterpret_cast<Pair*>(s);
    auto two_keys = [&](int64_t t, bool both) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) {
        const float* at = s + (t * NR + j) * kLanes;
        const Vec a = weight_of(load(at), scale, base[j]);
        const Vec b = both ? weight_of(load(at + NR * kLanes), scale, base[j]) : zero();
        sum[j] = sum[j] + (a + b);
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);  // all of a, then all of b
        _mm512_storeu_si512(pairs + (t / 2 * NR + j) * kLanes,
                            _mm512_permutexvar_epi16(pair_order(), halves));
      }
    };
    int64_t t = 0;
    for (; t + 2 <= count; t += 2) two_keys(t, true);
    if (t < count) two_keys(t, false);
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++)
      store(state.sum + j * kLanes,
            fma(load(state.sum + j * kLanes), load(state.alpha + j * kLanes), sum[j]));
  }
  template <int NR>
  void drop(int64_t t, int j, VecI kept, float* s) const {
    float* weights = s + (t / 2 * NR + j) * kLanes;
    const VecI other_key = set1i(t % 2 ? 0xffff : static_cast<int32_t>(0xffff0000u));
    store(weights, as<Vec>(as<VecI>(load(weights)) & (kept | other_key)));
  }
  template <int NR>
  void values(int64_t count, const float* s, float* o, const float* alpha) const {
    multiply_pairs<NR, Into::scale, false>(p_.dv, (count + 1) / 2, pairs_v_, p_.dv,
                                           reinterpret_cast<const Pair*>(s), NR * kLanes, o, lanes_, alpha);
  }

 private:
  static Vec weight_of(Vec product, Vec scale, Vec base) {
    return exp2_weight<4>(fma(product, scale, -base) * set1(kLog2e));
  }
  // 0 16 1 17 2 18 ...: an element of each half in turn.
  static __m512i pair_order() {
    const __m512i first = (__m512i)(as<VecU>(lane_index()));
    return _mm512_add_epi32(first, _mm512_slli_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(16)), 16));
  }

  const AttentionProblem& p_;
  const Bfloat *k_, *v_;
  int64_t lanes_, depth_;
  Pair *q_, *even_k_, *pairs_v_;  // [depth][lanes], [kTileKeys][depth], [kTileKeys / 2][dv]
  const Pair* key_rows_ = nullptr;
  int64_t key_stride_ = 0;
};

}  // namespace
}  // namespace dlops
