// Rotary position embedding: one pass over x, in float32. Products and sums round one by one, as the textbook's
// x cos + rotate_half(x) sin does, so float32 results are the same bits. A task is a block of rows and heads of
// one sequence, so that the rows' tables are read once for those heads. y may be x.
#include <type_traits>

#include "../cpu/parallel.h"
#include "../cpu/simd.h"
#include "cpu_parts.h"

namespace dlops::DLOPS_PARTS {
namespace {

constexpr int64_t kTaskElements = 1 << 15;  // about
constexpr int64_t kMaxPairs = 128;          // head dimensions are at most 256
constexpr int64_t kTableRows = 64;          // at most, of a task: converted together, 64 KiB

// cos and sin of row `row`, as float32: where they lie, or converted into `own` [2, kMaxPairs].
struct TableRow { const float *cos, *sin; };
template <class U>
void convert(const void* from, int64_t at, int64_t n, float sign, float* to) {
  const U* p = static_cast<const U*>(from) + at;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(p + i) * set1(sign));
  for (; i < n; i++) to[i] = load1(p + i) * sign;
}
TableRow table_row(const RotaryParams& p, int64_t b, int64_t row, float* own) {
  const int64_t at = b * p.table_batch + row * p.table_row, n = p.rotary / 2;
  if (p.table_dtype == Dtype::f32 && !p.inverse)
    return {static_cast<const float*>(p.cos) + at, static_cast<const float*>(p.sin) + at};
  with_dtype(p.table_dtype, [&](auto* type) {
    using U = std::remove_pointer_t<decltype(type)>;
    convert<U>(p.cos, at, n, 1.f, own);
    convert<U>(p.sin, at, n, p.inverse ? -1.f : 1.f, own + kMaxPairs);
  });
  return {own, own + kMaxPairs};
}

// y [d] = x [d] rotated; pairs (i, i + half).
template <class T>
void rotate_halves(const T* x, T* y, const TableRow& t, int64_t half) {
  auto turn = [&](Vec a, Vec b, Vec c, Vec s, Vec& to_a, Vec& to_b) {
    to_a = a * c - b * s;
    to_b = b * c + a * s;
  };
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    Vec a, b;
    turn(load(x + i), load(x + half + i), load(t.cos + i), load(t.sin + i), a, b);
    store(y + i, a);
    store(y + half + i, b);
  }
  if (i < half) {
    const int n = static_cast<int>(half - i);
    Vec a, b;
    turn(load_part(x + i, n), load_part(x + half + i, n), load_part(t.cos + i, n), load_part(t.sin + i, n), a,
         b);
    store_part(y + i, a, n);
    store_part(y + half + i, b, n);
  }
}

// Pairs (2i, 2i + 1): two vectors hold kLanes pairs.
template <class T>
void rotate_neighbours(const T* x, T* y, const TableRow& t, int64_t pairs) {
  const VecI even = lane_index() * 2;
  auto turn = [&](Vec low, Vec high, Vec c, Vec s, Vec& to_low, Vec& to_high) {
    const Vec a = __builtin_shuffle(low, high, even), b = __builtin_shuffle(low, high, even + 1);
    const Vec to_a = a * c - b * s, to_b = b * c + a * s;
    to_low = zip_lo(to_a, to_b);
    to_high = zip_hi(to_a, to_b);
  };
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    Vec low, high;
    turn(load(x + 2 * i), load(x + 2 * i + kLanes), load(t.cos + i), load(t.sin + i), low, high);
    store(y + 2 * i, low);
    store(y + 2 * i + kLanes, high);
  }
  if (i < pairs) {
    const int n = static_cast<int>(pairs - i), first = 2 * n < kLanes ? 2 * n : kLanes, rest = 2 * n - first;
    Vec low, high;
    turn(load_part(x + 2 * i, first), load_part(x + 2 * i + kLanes, rest), load_part(t.cos + i, n),
         load_part(t.sin + i, n), low, high);
    store_part(y + 2 * i, low, first);
    store_part(y + 2 * i + kLanes, high, rest);
  }
}

template <class T>
__attribute__((noinline)) void rotate_row(const RotaryParams& p, const T* x, T* y, const TableRow& t) {
  if (p.interleaved)
    rotate_neighbours(x, y, t, p.rotary / 2);
  else
    rotate_halves(x, y, t, p.rotary / 2);
  if (x != y && p.rotary < p.d)
    memcpy(y + p.rotary, x + p.rotary, static_cast<size_t>(p.d - p.rotary) * sizeof(T));
}

template <class T>
void rotate(const RotaryParams& p) {
  auto block_of = [&](int64_t n, int64_t taken, int64_t most) {
    const int64_t fits = kTaskElements / (taken * p.d), block = fits < most ? fits : most;
    return block < 1 ? 1 : block < n ? block : n;
  };
  // What lies side by side is taken one after the other: all heads of a row, or many rows of a head.
  const bool heads_inside = p.x.head < p.x.row;
  const int64_t rows = block_of(p.rows, heads_inside ? p.heads : 1, kTableRows);
  const int64_t heads = heads_inside ? p.heads : block_of(p.heads, rows, p.heads);
  const int64_t row_blocks = (p.rows + rows - 1) / rows, head_blocks = (p.heads + heads - 1) / heads;
  parallel_for(p.threads, p.batch * head_blocks * row_blocks, [&](int64_t task) {
    const int64_t row = task % row_blocks * rows, head = task / row_blocks % head_blocks * heads;
    const int64_t b = task / row_blocks / head_blocks;
    const int64_t row_end = row + rows < p.rows ? row + rows : p.rows;
    const int64_t head_end = head + heads < p.heads ? head + heads : p.heads;
    alignas(64) float own[kTableRows][2 * kMaxPairs];
    TableRow table[kTableRows];
    for (int64_t i = row; i < row_end; i++) table[i - row] = table_row(p, b, i, own[i - row]);
    auto one = [&](int64_t h, int64_t i) {
      rotate_row(p, static_cast<const T*>(p.x.data) + b * p.x.batch + h * p.x.head + i * p.x.row,
                 static_cast<T*>(p.y.data) + b * p.y.batch + h * p.y.head + i * p.y.row, table[i - row]);
    };
    if (heads_inside) {
      for (int64_t i = row; i < row_end; i++)
        for (int64_t h = head; h < head_end; h++) one(h, i);
    } else {
      for (int64_t h = head; h < head_end; h++)
        for (int64_t i = row; i < row_end; i++) one(h, i);
    }
  });
}

}  // namespace

void rotary(const RotaryParams& p) {
  with_dtype(p.dtype, [&](auto* t) { rotate<std::remove_pointer_t<decltype(t)>>(p); });
}

}  // namespace dlops::DLOPS_PARTS
