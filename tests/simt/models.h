// Layouts as the PTX ISA 9.0 writes them down, for the wrapper tests to compare the simt runner with. Written from the
// manual's tables and formulas alone: nothing here knows how csrc/simt does it.
#pragma once
#include <cstdint>

namespace models {

struct Place { int row, column; };

// ---- 9.7.14.5.8: fragments of mma.m16n8k16, element i of lane `lane` ----

inline Place mma_a(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8,
          in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
inline Place mma_b(int lane, int i) {  // row: k, column: n
  const int group = lane >> 2, in_group = lane % 4;
  return {in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}
inline Place mma_d(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

// ---- 9.7.14.5.15, figure 104, and 9.7.14.5.16, figure 107: a group of four threads holds one row of an 8x8 matrix ----

inline Place matrix_8x8(int lane, int i) { return {lane / 4, lane % 4 * 2 + i}; }

// ---- 9.7.15.5.1.1.1: fragments of wgmma.m64nNk16; figure 148: A in registers, figure 149: D. Warp w has rows 16 w .. ----

inline Place wgmma_a(int thread, int i) {
  const Place in_warp = mma_a(thread % 32, i);
  return {thread / 32 * 16 + in_warp.row, in_warp.column};
}
inline Place wgmma_d(int thread, int i) {
  // Figure 149: T0 {d0, d1} {d4, d5} ... across the columns, 8 apart; {d2, d3} {d6, d7} ... eight rows below.
  const int row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
  return {row, i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// ---- 5.5.7: which 16-byte chunk of a 128-byte line lies where, line by line until the pattern repeats ----

inline constexpr int kSwizzleTable[8][8] = {
    {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4},
    {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2}, {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};
// The tables of the narrower spans are its first lines: 2 for 32 bytes, 4 for 64, 8 for 128.
inline constexpr uint32_t swizzle_lines(int span_bytes) {
  return span_bytes == 128 ? 8 : span_bytes == 64 ? 4 : span_bytes == 32 ? 2 : 1;
}
// The byte of the source that lies at byte `offset` of the destination, whose pattern starts at 0.
inline uint32_t swizzle_source(int span_bytes, uint32_t offset) {
  const uint32_t line = offset / 128, chunk = offset % 128 / 16;
  return line * 128 + static_cast<uint32_t>(kSwizzleTable[line % swizzle_lines(span_bytes)][chunk]) * 16 +
         offset % 16;
}

// ---- 9.7.15.5.1.2.1.3: canonical layouts, 16-bit elements (T = 8); offsets LBO and SBO in elements ----

struct Layout {
  bool mn_major;
  int span_bytes;  // 16: no swizzle
  uint32_t lbo, sbo;
};
// The table's middle column: where element (mn, k) lies before swizzling, in elements.
inline uint32_t canonical(const Layout& l, uint32_t mn, uint32_t k) {
  constexpr uint32_t T = 8;
  const uint32_t w =
      static_cast<uint32_t>(l.span_bytes) / 16;  // chunks of a span: the 2, 4 and 8 of the table
  if (l.mn_major && l.span_bytes == 16)          // ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
    return mn % T + mn / T * l.sbo + k % 8 * T + k / 8 * l.lbo;
  if (l.mn_major)  // ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
    return mn % T + mn / T % w * T + mn / (T * w) * l.lbo + k % 8 * w * T + k / 8 * l.sbo;
  if (l.span_bytes == 16)  // ((8,m),(T,2k)):((1T,SBO),(1,LBO))
    return mn % 8 * T + mn / 8 * l.sbo + k % T + k / T * l.lbo;
  return mn % 8 * w * T + mn / 8 * l.sbo + k % T + k / T * T;  // ((8,m),(T,2k)):((wT,SBO),(1,T))
}
// The table's last column: Swizzle<b, 4, 3> of the byte address: b bits from bit 4 are xor-ed with those from bit 7.
inline uint32_t swizzle_b43(int span_bytes, uint32_t address) {
  const uint32_t bits = span_bytes == 128 ? 3 : span_bytes == 64 ? 2 : span_bytes == 32 ? 1 : 0;
  return address ^ ((address >> 7 & ((1u << bits) - 1)) << 4);
}

// ---- 9.7.15.5.1.2.2: the matrix descriptor ----

inline uint64_t descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes, int span_bytes) {
  const auto encode = [](uint32_t x) { return static_cast<uint64_t>((x & 0x3ffff) >> 4); };
  const uint64_t mode = span_bytes == 128 ? 1 : span_bytes == 64 ? 2 : span_bytes == 32 ? 3 : 0;
  return encode(address) | encode(leading_bytes) << 16 | encode(stride_bytes) << 32 | mode << 62;
}

// Small integers that look random: products and sums of them are exact in every type.
inline int value(uint32_t i, uint32_t salt = 0) {
  uint32_t x = (i + 7) * 2654435761u + salt * 40503u;
  x ^= x >> 13, x *= 0x5bd1e995u, x ^= x >> 15;
  return static_cast<int>(x % 15) - 7;
}

}  // namespace models
