// The two products of the forward pass in float32: S^T = K Q^T and O^T = V^T P^T, rows in lanes. Only Q is packed; K
// and V are broadcast element by element from where they lie, so any row stride will do. Half types are widened, a tile
// of keys at a time. DotProducts (dot_products.h) is the same for bfloat16's dot product instruction.
#pragma once
#include "../cpu/gemm.h"
#include "softmax.h"

namespace dlops {
namespace {

using attention::Range;

// Hands out parts of a thread's scratch memory, each on a cache line of its own.
struct Parts {
  float* next;
  float* take(int64_t floats) {
    float* part = next;
    next += (floats + 15) / 16 * 16;
    return part;
  }
};

template <class T>
class FloatProducts {
 public:
  using Element = T;
  // Rows of a block, in vectors. A wider block widens keys less often; float32 has nothing to widen.
  static constexpr int kBlockVectors = kLanes == 16 ? (sizeof(T) == 4 ? 4 : 8) : 2 * kTileVectors;
  static constexpr bool kScaled = true;  // Q is scaled while it is packed

  // k, v: key 0 of the head.
  FloatProducts(const AttentionProblem& p, const T* k, const T* v, int64_t lanes, Parts& parts)
      : p_(p),
        k_(k),
        v_(v),
        lanes_(lanes),
        q_(parts.take(p.d * lanes)),
        wide_k_(parts.take(kTileKeys * p.d)),
        wide_v_(parts.take(kTileKeys * p.dv)) {}
  static int64_t floats(const AttentionProblem& p, int64_t lanes) {
    return p.d * lanes + kTileKeys * (p.d + p.dv) + 3 * 16;
  }

  void pack_queries(const T* q, int64_t rows) {
    pack_rows(q, p_.q.row, rows, p_.d, query_scale(p_), q_, lanes_);
  }
  void load_keys(Range keys) {
    key_rows_ = float_rows(k_ + keys.begin * p_.k.row, p_.k.row, keys.end - keys.begin, p_.d, wide_k_);
  }
  void load_values(Range keys) {
    value_rows_ = float_rows(v_ + keys.begin * p_.v.row, p_.v.row, keys.end - keys.begin, p_.dv, wide_v_);
  }
  // The rows of hidden keys become zero: their weights are, but 0 * NaN would be NaN.
  void load_values(Range keys, const bool* hidden) {
    for (int64_t t = 0; t < keys.end - keys.begin; t++)
      for (int64_t c = 0; c < p_.dv; c++)
        wide_v_[t * p_.dv + c] = hidden[t] ? 0.f : load1(v_ + (keys.begin + t) * p_.v.row + c);
    value_rows_ = {wide_v_, p_.dv};
  }

  // s [count][NR vectors] = K Q^T for the rows from lane `first`.
  template <int NR>
  void scores(int64_t count, int64_t first, float* s) const {
    multiply<NR, Into::overwrite, true>(count, p_.d, key_rows_.data, key_rows_.stride, q_ + first, lanes_, s,
                                        NR * kLanes);
  }
  // s [count][NR vectors]: scores, to be multiplied by `factor`, become weights.
  template <int NR>
  void softmax(int64_t count, float, float* s, const RowState& state) const {
    softmax_tile<NR>(count, s, state);
  }
  // Weight (t, vector j) is dropped where not kept.
  template <int NR>
  void drop(int64_t t, int j, VecI kept, float* s) const {
    float* weight = s + (t * NR + j) * kLanes;
    store(weight, select(kept, load(weight), zero()));
  }
  // o [dv][lanes] = alpha o + V^T s.
  template <int NR>
  void values(int64_t count, const float* s, float* o, const float* alpha) const {
    multiply<NR, Into::scale, false>(p_.dv, count, value_rows_.data, value_rows_.stride, s, NR * kLanes, o,
                                     lanes_, alpha);
  }

 private:
  const AttentionProblem& p_;
  const T *k_, *v_;
  int64_t lanes_;
  float *q_, *wide_k_, *wide_v_;  // [d][lanes], [kTileKeys][d], [kTileKeys][dv]
  FloatRows key_rows_{}, value_rows_{};
};

}  // namespace
}  // namespace dlops
