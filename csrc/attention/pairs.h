// bfloat16 numbers in pairs, as the dot product instruction wants them: neighbours of a row, packed with rows in lanes, or
// neighbours of a column.
#pragma once
#include "gemm_dot.h"
#include "pack.h"

namespace dlops {
namespace {

// from [count][d] (row_stride apart) -> to [ceil(d / 2)][lanes]; an odd d's last pair ends in zero, and so do lanes
// past count.
__attribute__((noinline)) inline void pack_pairs(const Bfloat* from, int64_t row_stride, int64_t count,
                                                 int64_t d, Pair* to, int64_t lanes) {
  for (int64_t first = 0; first < count; first += kLanes) {
    const Bfloat* rows = from + first * row_stride;
    const int64_t n = count - first < kLanes ? count - first : kLanes;
    groups(d / 2, [&](int64_t i, int width) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++) {
        v[r] = zero();
        if (r < n) memcpy(&v[r], rows + r * row_stride + 2 * i, static_cast<size_t>(width) * sizeof(Pair));
      }
      transpose(v);
      for (int r = 0; r < width; r++) memcpy(to + (i + r) * lanes + first, &v[r], sizeof v[r]);
    });
    if (d % 2)
      for (int64_t r = 0; r < kLanes; r++)
        to[d / 2 * lanes + first + r] = {r < n ? rows[r * row_stride + d - 1].bits : uint16_t{0}, 0};
  }
}

// from [count][d] (row_stride apart) -> to [ceil(count / 2)][d] (to_stride apart, zeros behind d): element c of rows 2 i and
// 2 i + 1; a row past the last is zero.
__attribute__((noinline)) inline void interleave_rows(const Bfloat* from, int64_t row_stride, int64_t count,
                                                      int64_t d, Pair* to, int64_t to_stride) {
  for (int64_t t = 0; t < count; t += 2) {
    const Bfloat *a = from + t * row_stride, *b = a + row_stride;
    const bool both = t + 1 < count;
    Pair* row = to + t / 2 * to_stride;
    groups(d, [&](int64_t i, int width) {
      if (width < kLanes) {
        for (int c = 0; c < width; c++) row[c] = {a[c].bits, both ? b[c].bits : uint16_t{0}};
        return;
      }
      const VecU high = both ? as<VecU>(load(b + i)) : VecU{};  // widened, the bits stand in the upper half
      const VecU pair = as<VecU>(load(a + i)) >> 16 | high;
      memcpy(row + i, &pair, sizeof pair);
    });
    for (int64_t c = d; c < to_stride; c++) row[c] = {0, 0};
  }
}

}  // namespace
}  // namespace dlops
