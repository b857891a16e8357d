// LayerNorm and RMSNorm over rows of d elements. A row is read from memory once: its statistics and its output come from
// the cache. Rows beyond kPiece elements merge the moments of their pieces.
#pragma once
#include "moments.h"

namespace dlops {
namespace {

// Sum of squares over d.
template <class T>
DLOPS_LEAF double mean_square(const T* s, int64_t d) {
  double all = 0;
  for (int64_t begin = 0; begin < d; begin += kPiece) {
    const int64_t n = smaller(kPiece, d - begin);
    const T* p = s + begin;
    Sums q;
    const int64_t end = whole_vectors(n, [&](int j, int64_t i) {
      const Vec v = load(p + i);
      q[j] = fma(v, v, q[j]);
    });
    if (end < n) {
      const Vec v = select(fresh(n), load_last(p, n), zero());
      q[1] = fma(v, v, q[1]);
    }
    all += q.total();
  }
  return all / static_cast<double>(d);
}

// sum = x + residual, rounded to T.
template <class T>
DLOPS_LEAF void add_rows(const T* x, const T* residual, T* sum, int64_t n) {
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(sum + i, load(x + i) + load(residual + i));
  if (n % kLanes) store_last(sum, n, load_last(x, n) + load_last(residual, n));
}

// y = ((s - mean) * rstd + offset) * weight + bias for kRows rows at once, so that weight and bias are loaded once for all;
// offset is what float32 lost of the mean. `next`, here and below: what the thread reads after these rows.
template <class T, bool kRms, int kRows>
DLOPS_LEAF void write_rows(const T* s, T* y, int64_t d, const Normalizer* m, const float* weight,
                           const float* bias, const T* next, const T* next_residual) {
  Vec mean[kRows], slope[kRows], offset[kRows];
  for (int j = 0; j < kRows; j++) {
    mean[j] = set1(m[j].mean);
    slope[j] = set1(m[j].rstd);
    offset[j] = set1(-m[j].low * m[j].rstd);
  }
  auto step = [&](auto get, auto put) {
    const Vec w = get(weight), b = kRms ? zero() : get(bias);
    for (int j = 0; j < kRows; j++) {
      const Vec v = get(s + j * d);
      put(y + j * d, kRms ? v * slope[j] * w : fma(fma(v - mean[j], slope[j], offset[j]), w, b));
    }
  };
  constexpr int kLine = 64 / sizeof(T);
  auto whole = [&](int64_t i) {
    step([&](auto* from) { return load(from + i); }, [&](T* to, Vec v) { store(to + i, v); });
  };
  int64_t i = 0;
  for (; i + kLine <= d; i += kLine) {
    for (int j = 0; j < kRows; j++) {
      __builtin_prefetch(next + j * d + i, 0, 2);
      if (next_residual) __builtin_prefetch(next_residual + j * d + i, 0, 2);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kLine; k += kLanes) whole(i + k);
  }
  for (; i + kLanes <= d; i += kLanes) whole(i);
  if (i < d)
    step([&](auto* from) { return load_last(from, d); }, [&](T* to, Vec v) { store_last(to, d, v); });
}

template <class T, bool kRms>
void rows_forward(const RowNormParams& p) {
  const FloatParam weight(p.weight, p.param_dtype, p.d, 1.f), bias(p.bias, p.param_dtype, p.d, 0.f);
  const T *x = static_cast<const T*>(p.x), *residual = static_cast<const T*>(p.residual);
  T *y = static_cast<T*>(p.y), *sum = static_cast<T*>(p.sum);

  auto normalizer = [&](int64_t row, const T* s) {
    if (kRms) return Normalizer(0, 1 / __builtin_sqrt(mean_square(s, p.d) + static_cast<double>(p.eps)));
    const Normalizer m(moments(s, p.d), p.eps);
    p.mean[row] = m.mean;
    return m;
  };
  auto some = [&](int64_t row, auto count) {
    const int64_t at = row * p.d;
    const T* s = residual ? sum : x;
    Normalizer m[2] = {{0, 0}, {0, 0}};
    for (int j = 0; j < count; j++) {
      const int64_t begin = at + j * p.d;
      if (residual) add_rows(x + begin, residual + begin, sum + begin, p.d);
      m[j] = normalizer(row + j, s + begin);
      p.rstd[row + j] = m[j].rstd;
    }
    const int64_t next = row + 2 * count <= p.rows ? at + count * p.d : at;
    write_rows<T, kRms, count>(s + at, y + at, p.d, m, weight, bias, x + next,
                               residual ? residual + next : nullptr);
  };
  const int64_t run = larger(2, 4 * kPiece / p.d);
  run_phases(p.threads, Phase{ceil_div(p.rows, run), [&](int64_t task, int) {
                                int64_t row = task * run;
                                const int64_t end = smaller(row + run, p.rows);
                                for (; row + 2 <= end; row += 2) some(row, std::integral_constant<int, 2>());
                                for (; row < end; row++) some(row, std::integral_constant<int, 1>());
                              }});
}

// ---- backward ----

struct RowSums {
  double g, gx;  // sums over d of g = dy * weight, and of g * (s - mean)
};

template <class T>
DLOPS_LEAF RowSums row_sums(const T* dy, const T* s, int64_t d, float mean, const float* weight) {
  RowSums all{0, 0};
  for (int64_t begin = 0; begin < d; begin += kPiece) {
    const int64_t n = smaller(kPiece, d - begin);
    Sums a, b;
    auto add = [&](int j, Vec g, Vec v) {
      a[j] = a[j] + g;
      b[j] = fma(g, v - set1(mean), b[j]);
    };
    const T *from = dy + begin, *values = s + begin;
    const int64_t end = whole_vectors(
        n, [&](int j, int64_t i) { add(j, load(from + i) * load(weight + begin + i), load(values + i)); });
    if (end < n)
      add(1, select(fresh(n), load_last(from, n) * load_last(weight + begin, n), zero()),
          select(fresh(n), load_last(values, n), set1(mean)));
    all.g += a.total();
    all.gx += b.total();
  }
  return all;
}

// What a row needs besides its elements: dx = g * rstd + (s - mean) * q + r  (+ dsum).
struct RowMap { float mean, rstd, q, r; };

// kRows rows at once: the weight and the accumulators of its gradient are loaded once for all of them. dweight and dbias
// are slots as in group_last.h, or null.
template <class T, int kRows>
DLOPS_LEAF void write_dx(const RowNormBackwardParams& p, int64_t row, const RowMap* maps, const float* weight,
                         float* dweight, float* dbias) {
  const int64_t d = p.d;
  const T *dy = static_cast<const T*>(p.dy) + row * d, *s = static_cast<const T*>(p.s) + row * d;
  const T* dsum = p.dsum ? static_cast<const T*>(p.dsum) + row * d : nullptr;
  T* dx = p.dx ? static_cast<T*>(p.dx) + row * d : nullptr;
  Vec mean[kRows], rstd[kRows], q[kRows], r[kRows];
  for (int j = 0; j < kRows; j++) {
    mean[j] = set1(maps[j].mean);
    rstd[j] = set1(maps[j].rstd);
    q[j] = set1(maps[j].q);
    r[j] = set1(maps[j].r);
  }
  // slot: of the accumulators; get and put: whole vectors, or the last one of the row.
  auto step = [&](int64_t slot, auto get, auto put) {
    const Vec w = get(weight);
    Vec dw = zero(), db = zero();
    for (int j = 0; j < kRows; j++) {
      const Vec g = get(dy + j * d), v = get(s + j * d) - mean[j], scaled = g * rstd[j];
      dw = fma(scaled, v, dw);
      db = db + g;
      if (!dx) continue;
      Vec out = fma(scaled, w, fma(v, q[j], r[j]));
      if (dsum) out = out + get(dsum + j * d);
      put(dx + j * d, out);
    }
    if (dweight) store(dweight + slot, load(dweight + slot) + dw);
    if (dbias) store(dbias + slot, load(dbias + slot) + db);
  };
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes)
    step(i, [&](auto* from) { return load(from + i); }, [&](T* to, Vec v) { store(to + i, v); });
  if (i < d)
    step(i, [&](auto* from) { return load_last(from, d); }, [&](T* to, Vec v) { store_last(to, d, v); });
}

// The gradients of weight and bias are sums over rows: one pair of accumulators per block of rows, added up in the order
// of the blocks. Blocks of 32 rows at least, or adding them up costs too much, and of 256 at most, or float32 sums lose
// too much; between the two, 64 blocks to spread over threads.
template <class T>
void rows_backward(const RowNormBackwardParams& p) {
  const int64_t block = smaller(larger(ceil_div(p.rows, 64), 32), 256), blocks = ceil_div(p.rows, block);
  const int64_t wide = ceil_div(p.d, kLanes) * kLanes;
  const bool parameters = p.dweight || p.dbias;
  const FloatParam weight(p.weight, p.param_dtype, p.d, 1.f);
  cpu::Scratch scratch(parameters ? static_cast<size_t>(blocks * 2 * wide) * sizeof(float)
                                  : 0);  // [blocks, 2, slots]

  auto rows = [&](int64_t task, int) {
    float* dweight = p.dweight ? scratch.floats() + task * 2 * wide : nullptr;
    float* dbias = p.dbias ? scratch.floats() + (task * 2 + 1) * wide : nullptr;
    if (dweight) memset(dweight, 0, static_cast<size_t>(wide) * sizeof(float));
    if (dbias) memset(dbias, 0, static_cast<size_t>(wide) * sizeof(float));
    auto some = [&](int64_t row, auto count) {
      RowMap maps[2];
      for (int j = 0; j < count; j++) {
        const float mean = p.rms ? 0.f : p.mean[row + j];
        const double rstd = p.rstd[row + j], d = static_cast<double>(p.d);
        RowSums sums{0, 0};
        if (p.dx)
          sums = row_sums(static_cast<const T*>(p.dy) + (row + j) * p.d,
                          static_cast<const T*>(p.s) + (row + j) * p.d, p.d, mean, weight);
        maps[j] = {mean, p.rstd[row + j], static_cast<float>(-rstd * rstd * rstd * sums.gx / d),
                   p.rms ? 0.f : static_cast<float>(-rstd * sums.g / d)};
      }
      write_dx<T, count>(p, row, maps, weight, dweight, dbias);
    };
    int64_t row = task * block;
    const int64_t end = smaller(row + block, p.rows);
    for (; row + 2 <= end; row += 2) some(row, std::integral_constant<int, 2>());
    for (; row < end; row++) some(row, std::integral_constant<int, 1>());
  };
  // The slots of a row's last vector: see group_last.h.
  auto collect = [&](int64_t task, int) {
    const int64_t rest = p.d % kLanes, whole = p.d - rest;
    for (int64_t i = task * 512; i < smaller((task + 1) * 512, p.d); i++) {
      const int64_t slot = i < whole || p.d < kLanes ? i : i + kLanes - rest;
      double dweight = 0, dbias = 0;
      for (int64_t b = 0; b < blocks; b++) {
        if (p.dweight) dweight += scratch.floats()[b * 2 * wide + slot];
        if (p.dbias) dbias += scratch.floats()[(b * 2 + 1) * wide + slot];
      }
      if (p.dweight) p.dweight[i] = static_cast<float>(dweight);
      if (p.dbias) p.dbias[i] = static_cast<float>(dbias);
    }
  };
  run_phases(p.threads, Phase{blocks, rows}, Phase{parameters ? ceil_div(p.d, int64_t{512}) : 0, collect});
}

}  // namespace
}  // namespace dlops
