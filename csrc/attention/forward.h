// The forward pass of one block of rows: for each tile of keys, scores, an online softmax, and the weighted sum of the
// values (Rabe and Staats 2021; Dao et al. 2022). Rows are in lanes throughout; see products.h and softmax.h.
//
// A block is one or more panels of up to kTileVectors vectors of rows, which share the tile of keys.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "products.h"

namespace dlops {
namespace {

using attention::lesser;
using attention::Sequence;

// What the panels of a block share.
template <class Products>
struct ForwardBlock {
  const AttentionForwardParams& p;
  const ScoreBlock& scores;
  const Dropout* dropout;  // null: none
  Range rows;
  int64_t lanes;  // whole vectors of rows
  Products products;
  float* o;         // [dv][lanes]
  float *s, *mask;  // [kTileKeys][panel]
  RowState state;   // [lanes]
};

// Which keys of the tile no row of the panel sees; returns how many. Scores are -inf there.
template <int NR>
int64_t hidden_keys(int64_t count, const float* s, bool* hidden) {
  int64_t n = 0;
  for (int64_t t = 0; t < count; t++) {
    Vec top = load(s + t * NR * kLanes);
    VecI seen = top != set1(kMinusInf);  // NaN is seen
    for (int j = 1; j < NR; j++) seen |= load(s + (t * NR + j) * kLanes) != set1(kMinusInf);
    hidden[t] = reduce_max(select(seen, set1(1.f), zero())) == 0.f;
    n += hidden[t];
  }
  return n;
}

// Keys [keys.begin, keys.end), at most kTileKeys, for the NR vectors of rows from vector `first`.
template <int NR, class Products>
void forward_panel(ForwardBlock<Products>& b, Range keys, int first) {
  const AttentionForwardParams& p = b.p;
  const int64_t count = keys.end - keys.begin, lane = first * kLanes;
  const Vectors vectors{first, first + NR};
  const RowState state{b.state.top + lane, b.state.sum + lane, b.state.alpha + lane};
  float factor = Products::kScaled ? 1.f : query_scale(p);
  b.products.template scores<NR>(count, lane, b.s);
  if (factor < 0 || !b.scores.plain(keys, vectors)) {
    b.scores.adjust(keys, vectors, factor, b.s, b.mask, nullptr);
    factor = 1;
  }
  if (p.mask.kind != MaskKind::none) {
    bool hidden[kTileKeys];
    const int64_t n = hidden_keys<NR>(count, b.s, hidden);
    if (n == count) return;
    n > 0 ? b.products.load_values(keys, hidden) : b.products.load_values(keys);
  }
  b.products.template softmax<NR>(count, factor, b.s, state);
  if (b.dropout)
    b.dropout->each(b.rows.begin + lane, NR, keys,
                    [&](int64_t t, int j, VecI kept) { b.products.template drop<NR>(t, j, kept, b.s); });
  b.products.template values<NR>(count, b.s, b.o + lane, state.alpha);
}

// The keys from keys.begin on, at most kTileKeys, that one set of vectors of rows sees: on the diagonals of a causal
// mask or a window, vectors leave at the one end and join at the other.
struct Step {
  Range keys;
  Vectors vectors;
};
inline Step next_step(const AttentionProblem& p, const Sequence& s, const ScoreBlock& scores, Range keys) {
  Vectors v{0, scores.vectors()};
  int64_t end = keys.end;
  for (int j = 0; j < scores.vectors(); j++) {
    const Range seen = attention::keys_of_rows(p, s, scores.rows_of({j, j + 1}));
    if (seen.end <= keys.begin) {
      v.begin = j + 1;
    } else if (keys.begin < seen.begin) {
      end = lesser(end, seen.begin);
      v.end = j < v.end ? j : v.end;
    } else {
      end = lesser(end, seen.end);
    }
  }
  // Equal tiles, of whole register tiles of 6 keys: a short last one would pay for merging its sums and do little.
  const int64_t count = end - keys.begin, tiles = (count + kTileKeys - 1) / kTileKeys;
  const int64_t tile = ((count + tiles - 1) / tiles + 5) / 6 * 6;
  return {{keys.begin, lesser(end, keys.begin + tile)}, v};
}

template <class Products>
void forward_step(ForwardBlock<Products>& b, const Step& step) {
  if (step.vectors.begin >= step.vectors.end) return;
  b.products.load_keys(step.keys);
  if (b.p.mask.kind == MaskKind::none)
    b.products.load_values(step.keys);  // else each panel does: it may hide keys
  for (int first = step.vectors.begin; first < step.vectors.end;) {
    const int rest = step.vectors.end - first, panels = (rest + kTileVectors - 1) / kTileVectors;
    const int n = rest / panels;
    if (n == 1) forward_panel<1>(b, step.keys, first);
    if (n == 2) forward_panel<2>(b, step.keys, first);
    if (n == 3) forward_panel<3>(b, step.keys, first);
    if constexpr (kTileVectors == 4)
      if (n == 4) forward_panel<4>(b, step.keys, first);
    first += n;
  }
}

// The outputs of the block: O / sum, and the natural logarithm of the sum.
template <class Products>
void finish(const ForwardBlock<Products>& b, const float* sink, typename Products::Element* out,
            float* lse_out) {
  const float keep = 1.f / (1.f - b.p.dropout_p);
  const int64_t count = b.rows.end - b.rows.begin;
  for (int64_t r = 0; r < b.lanes; r += kLanes) {
    const Vec top = load(b.state.top + r);
    Vec total = load(b.state.sum + r);
    const VecI none = (top == set1(kMinusInf)) & (total == total);  // a score that is NaN is seen
    const Vec lse = select(none, top, select(total == total, top + log(total), total));
    if (sink) total = total + exp2((set1(*sink) - top) * set1(kLog2e));
    store(b.state.alpha + r, select(none, zero(), set1(keep) / total));
    store(b.state.top + r, lse);
    if (reduce_max(select(none, set1(1.f), zero())) > 0)  // 0 whatever the values hold that other rows see
      for (int64_t c = 0; c < b.p.dv; c++)
        store(b.o + c * b.lanes + r, select(none, zero(), load(b.o + c * b.lanes + r)));
  }
  for (int64_t r = 0; r < count; r++) lse_out[r] = b.state.top[r];
  unpack_rows(b.o, b.lanes, b.state.alpha, out, b.p.out.row, count, b.p.dv);
}

// Floats of scratch that a block needs.
template <class Products>
int64_t forward_floats(const AttentionForwardParams& p) {
  const int64_t lanes = Products::kBlockVectors * kLanes;
  return Products::floats(p, lanes) + lanes * (p.dv + 3) + 2 * kTileKeys * kTileVectors * kLanes + 6 * 16;
}

// Rows of sequence s = batch entry `entry`, head h.
template <class Products>
void forward_block(const AttentionForwardParams& p, const Sequence& s, int64_t entry, int64_t h, Range rows,
                   float* scratch) {
  using T = typename Products::Element;
  const ScoreBlock scores(p, s, entry, h, rows);
  const Dropout dropout(p, entry, h);
  const int64_t lanes = scores.vectors() * kLanes, kv_head = h / (p.heads / p.kv_heads);
  auto at = [&](const auto& x, int64_t head, int64_t row) {
    return x.batch * entry + x.head * head + x.row * row;
  };
  const T* k = static_cast<const T*>(p.k.data) + at(p.k, kv_head, s.k_begin);
  const T* v = static_cast<const T*>(p.v.data) + at(p.v, kv_head, s.k_begin);

  Parts parts{scratch};
  ForwardBlock<Products> b{p,
                           scores,
                           p.dropout_p > 0 ? &dropout : nullptr,
                           rows,
                           lanes,
                           Products(p, k, v, lanes, parts),
                           parts.take(p.dv * lanes),
                           parts.take(kTileKeys * kTileVectors * kLanes),
                           parts.take(kTileKeys * kTileVectors * kLanes),
                           {parts.take(lanes), parts.take(lanes), parts.take(lanes)}};
  b.products.pack_queries(static_cast<const T*>(p.q.data) + at(p.q, h, s.q_begin + rows.begin),
                          rows.end - rows.begin);
  for (int64_t i = 0; i < p.dv * lanes; i += kLanes) store(b.o + i, zero());
  for (int64_t i = 0; i < lanes; i += kLanes) {
    store(b.state.top + i, set1(kMinusInf));
    store(b.state.sum + i, zero());
  }
  Range keys = attention::keys_of_rows(p, s, rows);
  while (keys.begin < keys.end) {
    const Step step = next_step(p, s, scores, keys);
    forward_step(b, step);
    keys.begin = step.keys.end;
  }
  finish(b, p.sinks ? p.sinks + h : nullptr,
         static_cast<T*>(p.out.data) + at(p.out, h, s.q_begin + rows.begin),
         p.lse.data + entry * p.lse.batch + h * p.lse.head + s.q_begin + rows.begin);
}

// One head's rows are cut into blocks of at most `most` vectors, alike to one vector: a block of one vector alone would
// use a part of the machine. Depends on the number of rows only.
struct Blocks {
  int64_t vectors, count;
  Blocks(int64_t rows, int64_t most)
      : vectors((rows + kLanes - 1) / kLanes), count((vectors + most - 1) / most) {}
  Range rows(int64_t i, int64_t all) const {
    return {i * vectors / count * kLanes, lesser((i + 1) * vectors / count * kLanes, all)};
  }
};

// All blocks of all heads.
template <class Products>
void run_forward(const AttentionForwardParams& p) {
  const int64_t blocks = Blocks(p.q_len, Products::kBlockVectors).count, tasks = p.batch * p.heads * blocks;
  // Small blocks share a task, about 20 us of products: claiming one costs a fraction of a microsecond.
  const int64_t rows = lesser(p.q_len, Products::kBlockVectors * kLanes);
  const int64_t wanted = 2000000 / (2 * rows * p.k_len * (p.d + p.dv) + 1) + 1;
  const int64_t run = lesser(wanted, tasks / (4 * p.threads) + 1);
  parallel_for(p.threads, (tasks + run - 1) / run, [&](int64_t chunk) {
    const cpu::Scratch scratch(sizeof(float) * static_cast<size_t>(forward_floats<Products>(p)));
    for (int64_t i = chunk * run; i < lesser((chunk + 1) * run, tasks); i++) {
      const int64_t head = i / blocks, entry = head / p.heads;
      const int64_t block = blocks - 1 - i % blocks;  // causal: the long ones first
      const Sequence s = attention::sequence_of(p, entry);
      const Blocks own(s.q_len,
                       Products::kBlockVectors);  // a packed sequence may be shorter than the longest
      if (block < own.count)
        forward_block<Products>(p, s, entry, head % p.heads, own.rows(block, s.q_len), scratch.floats());
    }
  });
}

}  // namespace
}  // namespace dlops
