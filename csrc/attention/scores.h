// From raw products to scores: softcap, ALiBi, mask, window and lengths, and the dropout mask, for a tile of scores
// with rows in lanes, S^T [keys][lanes]. Forward and backward share it, so they see the same scores.
//
// Scores leave as s_ij of params.h, in natural units: a weight is exp2((s - largest) * kLog2e), the difference first,
// for a large score that is converted to units of log2 e and back would be rounded twice. -inf where row and key do not
// see each other.
#pragma once
#include "../cpu/math.h"
#include "dropout.h"
#include "geometry.h"
#include "pack.h"

namespace dlops {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int64_t kTileKeys =
    96;  // of a tile of the tiled kernels: a multiple of the rows of every register tile
constexpr float kMinusInf = -__builtin_inff(), kLowest = -3.402823466e38f;
constexpr int kScoreVectors = 16;  // that a ScoreBlock takes

// An element of a boolean mask: 0 where true, -inf where false.
struct Bool { uint8_t byte; };
DLOPS_INLINE float load1(const Bool* p) { return p->byte ? 0.f : kMinusInf; }
DLOPS_INLINE Vec load(const Bool* p) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  memcpy(&bytes, p, sizeof bytes);
  return select(__builtin_convertvector(bytes, VecI) != 0, zero(), set1(kMinusInf));
}

// Calls f with a null pointer of the mask's element type.
template <class F>
DLOPS_INLINE void with_mask(MaskKind kind, F f) {
  switch (kind) {
    case MaskKind::none: return;
    case MaskKind::boolean: return f(static_cast<Bool*>(nullptr));
    case MaskKind::f32: return f(static_cast<float*>(nullptr));
    case MaskKind::f16: return f(static_cast<Half*>(nullptr));
    case MaskKind::bf16: return f(static_cast<Bfloat*>(nullptr));
  }
}

// What Q is to be multiplied with before the product, so that the product is what `adjust` takes: the argument of tanh
// under a softcap, else the score.
DLOPS_INLINE float query_scale(const AttentionProblem& p) {
  return p.softcap > 0 ? p.scale / p.softcap : p.scale;
}

// Half open: a block's vectors of rows.
struct Vectors { int begin, end; };

// Rows [rows.begin, rows.end) of sequence `s` = entry b, head h; row rows.begin + r is in lane r, lanes past the rows
// see nothing. Row numbers and key numbers are < 2^31.
class ScoreBlock {
 public:
  ScoreBlock(const AttentionProblem& p, const attention::Sequence& s, int64_t b, int64_t h,
             attention::Range rows)
      : p_(p), s_(s), rows_(rows) {
    vectors_ = static_cast<int>((rows.end - rows.begin + kLanes - 1) / kLanes);
    cap_ = p.softcap;
    slope_ = p.alibi_slopes ? p.alibi_slopes[b * p.alibi_batch + h] : 0.f;
    mask_ = b * p.mask.batch + h * p.mask.head;
    for (int64_t r = 0; r < vectors_ * kLanes; r++) {
      const bool exists = rows.begin + r < rows.end;
      const attention::Range keys =
          exists ? attention::keys_of_row(p, s, rows.begin + r) : attention::Range{0, 0};
      begin_[r] = static_cast<int32_t>(keys.begin);
      end_[r] = static_cast<int32_t>(keys.end);
    }
  }

  int vectors() const { return vectors_; }
  attention::Range rows_of(Vectors v) const {
    return {rows_.begin + v.begin * kLanes, attention::lesser(rows_.begin + v.end * kLanes, rows_.end)};
  }

  // Whether `adjust` would change anything in a tile of these keys and rows.
  bool plain(attention::Range keys, Vectors v) const {
    return p_.softcap <= 0 && !p_.alibi_slopes && p_.mask.kind == MaskKind::none && all_visible(keys, v);
  }

  // s [keys][lanes], lanes those of the vectors v: products of `factor` times this with query_scale's Q become scores.
  // scratch [keys][lanes]: room for the mask. cap_slope [keys][lanes], where not null, receives the softcap's
  // derivative 1 - tanh^2.
  void adjust(attention::Range keys, Vectors v, float factor, float* s, float* scratch,
              float* cap_slope) const {
    const int64_t count = keys.end - keys.begin, lanes = (v.end - v.begin) * kLanes;
    const bool masked = p_.mask.kind != MaskKind::none, capped = p_.softcap > 0,
               same_for_rows = p_.mask.row == 0;
    if (masked) gather_mask(keys, v, scratch);
    if (masked || capped || slope_ != 0.f || factor != 1.f)
      for (int64_t t = 0; t < count; t++)
        for (int j = v.begin; j < v.end; j++) {
          const int64_t at = t * lanes + (j - v.begin) * kLanes;
          Vec x = load(s + at) * set1(factor);
          if (capped) {
            x = tanh(x);
            if (cap_slope) store(cap_slope + at, fma(-x, x, set1(1.f)));
            x = x * set1(cap_);
          }
          if (slope_ != 0.f) {
            const int64_t distance = rows_.begin + j * kLanes + s_.shift - keys.begin - t;
            const VecI signed_distance = set1i(static_cast<int32_t>(distance)) + lane_index();
            x = fma(set1(-slope_), abs(__builtin_convertvector(signed_distance, Vec)), x);
          }
          if (masked) {
            const Vec m = same_for_rows ? set1(scratch[t]) : load(scratch + at);
            // The most negative number means "as good as hidden" to many callers: it must not become -inf.
            x = max(set1(kLowest), m + x);
            x = select(m == set1(kMinusInf), m, x);
          }
          store(s + at, x);
        }
    for (int j = v.begin; j < v.end; j++) hide(keys, j, s + (j - v.begin) * kLanes, lanes);
  }

 private:
  bool all_visible(attention::Range keys, Vectors v) const {
    return attention::all_visible(p_, s_, rows_of(v), keys);
  }

  // The scores of vector j become -inf where row and key do not see each other: keys before the last row's first and
  // keys from the first row's last on.
  void hide(attention::Range keys, int j, float* s, int64_t lanes) const {
    const attention::Range rows = rows_of({j, j + 1});
    const attention::Range first = attention::keys_of_row(p_, s_, rows.begin),
                           last = attention::keys_of_row(p_, s_, rows.end - 1);
    // Beside a mask, lanes past the rows must not look like rows that see a key which the mask hides from every row.
    const bool whole = rows.end - rows.begin == kLanes || p_.mask.kind == MaskKind::none;
    VecI begin, end;
    memcpy(&begin, begin_ + j * kLanes, sizeof begin);
    memcpy(&end, end_ + j * kLanes, sizeof end);
    for (int64_t key = keys.begin; key < keys.end; key++) {
      if (whole && last.begin <= key && key < first.end) {  // every row sees it
        key = attention::lesser(first.end, keys.end) - 1;
        continue;
      }
      float* at = s + (key - keys.begin) * lanes;
      const VecI k = set1i(static_cast<int32_t>(key));
      store(at, select((begin <= k) & (k < end), load(at), set1(kMinusInf)));
    }
  }

  // The mask of the tile: [keys][lanes], or [keys] where it is the same for all rows.
  void gather_mask(attention::Range keys, Vectors v, float* to) const {
    const int64_t count = keys.end - keys.begin, lanes = (v.end - v.begin) * kLanes;
    const attention::Range rows = rows_of(v);
    const int64_t n = rows.end - rows.begin;
    with_mask(p_.mask.kind, [&](auto* type) {
      const int64_t row = p_.mask.row, key = p_.mask.key;
      const auto* from = static_cast<decltype(type)>(const_cast<void*>(p_.mask.data)) + mask_ +
                         rows.begin * row + keys.begin * key;
      if (row == 0) {
        for (int64_t t = 0; t < count; t++) to[t] = load1(from + t * key);
      } else if (key == 1) {
        pack_rows(from, row, n, count, 1.f, to, lanes);
      } else {
        for (int64_t t = 0; t < count; t++)
          for (int64_t r = 0; r < lanes; r++)
            to[t * lanes + r] = r < n ? load1(from + r * row + t * key) : 0.f;
      }
    });
  }

  const AttentionProblem& p_;
  attention::Sequence s_;
  attention::Range rows_;
  int vectors_;
  float cap_, slope_;
  int64_t mask_;  // offset of row 0, key 0
  int32_t begin_[kScoreVectors * kLanes], end_[kScoreVectors * kLanes];
};

// The dropout mask of one head's tiles; for use only where dropout_p > 0.
class Dropout {
 public:
  Dropout(const AttentionProblem& p, int64_t b, int64_t h)
      : key_(p.rng ? static_cast<uint64_t>(p.rng[0]) : 0),
        offset_(p.rng ? static_cast<uint32_t>(p.rng[1]) : 0),
        head_(static_cast<uint32_t>(b * p.heads + h)),
        threshold_(attention::dropout_threshold(p.dropout_p)) {}

  // f(t, j, kept) for key keys.begin + t and vector j of the rows from `row`: lanes of -1 where kept, 0 where dropped.
  template <class F>
  __attribute__((always_inline)) void each(int64_t row, int vectors, attention::Range keys, F f) const {
    for (int64_t first = keys.begin / 4 * 4; first < keys.end; first += 4)
      for (int j = 0; j < vectors; j++) {
        VecU words[4];
        const VecU rows = set1u(static_cast<uint32_t>(row) + j * kLanes) + as<VecU>(lane_index());
        attention::dropout_words<Lanes>(set1u(static_cast<uint32_t>(first / 4)), rows, head_, offset_, key_,
                                        words);
        for (int i = 0; i < 4; i++)
          if (keys.begin <= first + i && first + i < keys.end)
            f(first + i - keys.begin, j, as<VecI>(words[i] >= threshold_));
      }
  }

 private:
  Lanes::Key key_;
  uint32_t offset_, head_, threshold_;
};

}  // namespace
}  // namespace dlops
