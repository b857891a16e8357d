// The backward pass in float32 arithmetic. Half types are widened: rows of a block when the block is read, keys and
// values once per chunk.
#include "backward.h"
#include "backward_tile.h"
#include "cpu_parts.h"
#include "mask_gradient.h"

namespace dlops {
namespace {

template <class Element>
class FloatEngine {
 public:
  using T = Element;

  static int64_t floats(const AttentionProblem& p, int64_t chunk) {
    const int64_t widened = __is_same(T, float) ? 0 : chunk * (p.d + p.dv);
    return RowBlock<T>::floats(p) + p.d * kBlockRows + (p.softcap > 0 ? 3 : 2) * kTileKeys * kBlockRows +
           kTileKeys * p.d + chunk * (whole_vectors(p.d) + whole_vectors(p.dv)) + widened;
  }

  FloatEngine(const AttentionBackwardParams& p, float* memory)
      : p_(p), rows_(p, memory), dk_stride_(whole_vectors(p.d)), dv_stride_(whole_vectors(p.dv)) {
    dq_ = memory + RowBlock<T>::floats(p);
    scores_ = dq_ + p.d * kBlockRows;
    gradients_ = scores_ + kTileKeys * kBlockRows;
    cap_slope_ = gradients_ + kTileKeys * kBlockRows;
    seen_keys_ = cap_slope_ + (p.softcap > 0 ? kTileKeys * kBlockRows : 0);
    memory_ = seen_keys_ + kTileKeys * p.d;
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
    float* widened = dv_ + keys * dv_stride_;
    k_ = float_rows(key_row<const T>(p_.k, s, b, kv_head, chunk.begin), p_.k.row, keys, p_.d, widened);
    v_ = float_rows(key_row<const T>(p_.v, s, b, kv_head, chunk.begin), p_.v.row, keys, p_.dv,
                    widened + keys * p_.d);
  }

  const float* rows(int64_t h, Range rows, Range keys) {
    const ScoreBlock block(p_, s_, b_, h, rows);
    rows_.read(p_, s_, b_, h, rows);
    if (p_.dq.data) memset(dq_, 0, static_cast<size_t>(p_.d * rows_.lanes()) * sizeof(float));
    while (keys.begin < keys.end) {
      const Tile next = next_tile(p_, s_, rows, keys, chunk_.begin, 1);
      tile(block, h, rows_.slice(next.v), next.keys);
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
  void tile(const ScoreBlock& block, int64_t h, const RowSlice& rows, Range keys) {
    const int64_t count = keys.end - keys.begin, at = keys.begin - chunk_.begin, lanes = rows.lanes();
    const int vectors = rows.vectors();
    FloatRows k{k_.data + at * k_.stride, k_.stride};
    product<Into::overwrite, true>(vectors, count, p_.d, k.data, k.stride, rows.q_lanes, rows.lane_stride,
                                   scores_, lanes);
    bool seen[kTileKeys];
    const int64_t visible = finish_scores(p_, block, rows, keys, 1.f, scores_, gradients_,
                                          p_.softcap > 0 ? cap_slope_ : nullptr, seen);
    if (visible == 0) return;
    if (p_.dq.data || p_.dk.data)
      product<Into::overwrite, true>(vectors, count, p_.dv, v_.data + at * v_.stride, v_.stride,
                                     rows.dout_lanes, rows.lane_stride, gradients_, lanes);
    score_gradients(p_, s_, b_, h, keys, rows, scores_, gradients_);
    if (p_.dv_.data)
      product<Into::add, true>(static_cast<int>(dv_stride_ / kLanes), count, rows.count(), scores_, lanes,
                               rows.dout.data, rows.dout.stride, dv_ + at * dv_stride_, dv_stride_);
    if (p_.softcap > 0)
      for (int64_t x = 0; x < count * lanes; x += kLanes)
        store(gradients_ + x, load(gradients_ + x) * load(cap_slope_ + x));
    if (p_.dk.data)
      product<Into::add, true>(static_cast<int>(dk_stride_ / kLanes), count, rows.count(), gradients_, lanes,
                               rows.q.data, rows.q.stride, dk_ + at * dk_stride_, dk_stride_);
    if (!p_.dq.data) return;
    if (visible < count) k = seen_keys(k, count, seen);
    product<Into::add, false>(vectors, p_.d, count, k.data, k.stride, gradients_, lanes,
                              dq_ + rows.v.begin * kLanes, rows.lane_stride);
  }

  // A copy of the keys with zeros for those that no row sees.
  FloatRows seen_keys(FloatRows k, int64_t count, const bool* seen) {
    for (int64_t t = 0; t < count; t++) {
      const size_t bytes = static_cast<size_t>(p_.d) * sizeof(float);
      if (seen[t])
        memcpy(seen_keys_ + t * p_.d, k.data + t * k.stride, bytes);
      else
        memset(seen_keys_ + t * p_.d, 0, bytes);
    }
    return {seen_keys_, p_.d};
  }

  const AttentionBackwardParams& p_;
  RowBlock<T> rows_;
  int64_t dk_stride_, dv_stride_;
  float *dq_, *scores_, *gradients_, *cap_slope_, *seen_keys_, *memory_;
  Sequence s_;
  int64_t b_, kv_head_;
  Range chunk_;
  float *dk_, *dv_;  // [chunk][stride]
  FloatRows k_, v_;  // of the chunk
};

}  // namespace

namespace DLOPS_PARTS {

void backward(const AttentionBackwardParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) {
    if (p.dq.data || p.dk.data || p.dv_.data) backward_chunks<FloatEngine<T>>(p);
    if (p.dmask.data) mask_gradient<T>(p);
    if (p.dsinks) sink_gradients<T>(p);
  });
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
