// ldmatrix, stmatrix and mma.sync: one warp at a time.
#include <algorithm>
#include <bit>

#include "checker.h"
#include "fragment.h"
#include "shared.h"
#include "tensor.h"

namespace dlops::simt {

namespace {

void need_full_warp(const char* what, Loc loc) {
  const uint32_t lanes = self()->block->warps[self()->warp].lanes;
  if (lanes != ~0u) fail(loc, "%s in a warp of %d lanes: it needs all 32", what, std::popcount(lanes));
}

struct Rows {  // what one lane brings to ldmatrix or stmatrix
  uint32_t* r;
  int count;
  uint32_t address;
  bool transpose;
  Loc loc;
};

// The 8 rows of matrix i: their addresses come from lanes 8i .. 8i+7 (PTX ISA 9.7.14.5.15).
void rows_of(Rows** lanes, int i, const char* what, Access access, uint16_t* (&row)[8]) {
  uint32_t taken[8][8];  // different rows in one 16-byte column of the banks take turns
  int turns[8] = {}, passes = 0;
  for (int j = 0; j < 8; j++) {
    const Rows& q = *lanes[8 * i + j];
    Thread& lane = *(self() - self()->lane + 8 * i + j);
    if (q.address % 16)
      fail_as(lane, q.loc, "%s: this lane's address 0x%x is not aligned to 16 bytes", what, q.address);
    row[j] = reinterpret_cast<uint16_t*>(shared_pointer(lane, q.address, 16, what, q.loc));
    if (checker) checker->access(lane, row[j], 16, access, q.loc);
    const uint32_t column = q.address / 16 % 8;
    if (std::find(taken[column], taken[column] + turns[column], q.address) == taken[column] + turns[column])
      taken[column][turns[column]++] = q.address;
    passes = std::max(passes, turns[column]);
  }
  Counters& counters = self()->block->gang->counters;
  counters.shared_requests++;
  counters.shared_passes += passes;
}

}  // namespace

// Lane t holds elements (t/4, 2(t%4)) and the next one of each matrix; transposed, those of the matrix on its side.
void ldmatrix(uint32_t* r, int count, uint32_t address, bool transpose, Loc loc) {
  need_full_warp("ldmatrix", loc);
  Rows mine{r, count, address, transpose, loc};
  warp_collective<Rows>(~0u, "ldmatrix", loc, mine, [](Rows** lanes) {
    for (int i = 0; i < lanes[0]->count; i++) {
      uint16_t* row[8];
      rows_of(lanes, i, "ldmatrix", Access::read, row);
      for (int t = 0; t < 32; t++) {
        const int g = t / 4, c = t % 4 * 2;
        lanes[t]->r[i] = lanes[0]->transpose ? row[c][g] | uint32_t(row[c + 1][g]) << 16
                                             : row[g][c] | uint32_t(row[g][c + 1]) << 16;
      }
    }
  });
}

// PTX ISA 9.7.14.5.16.
void stmatrix(const uint32_t* r, int count, uint32_t address, bool transpose, Loc loc) {
  need_full_warp("stmatrix", loc);
  Rows mine{const_cast<uint32_t*>(r), count, address, transpose, loc};
  warp_collective<Rows>(~0u, "stmatrix", loc, mine, [](Rows** lanes) {
    for (int i = 0; i < lanes[0]->count; i++) {
      uint16_t* row[8];
      rows_of(lanes, i, "stmatrix", Access::write, row);
      for (int t = 0; t < 32; t++) {
        const int g = t / 4, c = t % 4 * 2;
        const uint32_t v = lanes[t]->r[i];
        (lanes[0]->transpose ? row[c][g] : row[g][c]) = uint16_t(v);
        (lanes[0]->transpose ? row[c + 1][g] : row[g][c + 1]) = uint16_t(v >> 16);
      }
    }
  });
}

namespace {

struct Mma {
  Half16 type;
  float* d;
  const uint32_t *a, *b;
};

// d[m][0:8] += sum_k a[m][k] b[k][0:8], in the order of k, rounded at every step.
#if defined(__x86_64__)
__attribute__((target_clones("avx2", "default")))
#endif
void multiply_rows(float (&a)[16][16], float (&b)[16][8], float (&d)[16][8]) {
  typedef float Row __attribute__((vector_size(32)));
  for (int m = 0; m < 16; m++) {
    Row sum;
    std::memcpy(&sum, d[m], sizeof sum);
    for (int k = 0; k < 16; k++) {
      Row row;
      std::memcpy(&row, b[k], sizeof row);
      sum += a[m][k] * row;
    }
    std::memcpy(d[m], &sum, sizeof sum);
  }
}

template <Half16 type>
void multiply(Mma** lanes) {  // D[16, 8] += A[16, 16] B[16, 8]
  float a[16][16], b[16][8], d[16][8];
  for (int t = 0; t < 32; t++) {
    const int g = t / 4, c = t % 4 * 2;
    for (int i = 0; i < 4; i++) {
      a[fragment_row(t, i)][fragment_k(t, i)] = low<type>(lanes[t]->a[i]);
      a[fragment_row(t, i)][fragment_k(t, i) + 1] = high<type>(lanes[t]->a[i]);
      d[g + i / 2 * 8][c + i % 2] = lanes[t]->d[i];
    }
    for (int i = 0; i < 2; i++) {  // b0 b1: (c, g) (c+8, g)
      b[c + i * 8][g] = low<type>(lanes[t]->b[i]);
      b[c + i * 8 + 1][g] = high<type>(lanes[t]->b[i]);
    }
  }
  multiply_rows(a, b, d);
  for (int t = 0; t < 32; t++)
    for (int i = 0; i < 4; i++) lanes[t]->d[i] = d[t / 4 + i / 2 * 8][t % 4 * 2 + i % 2];
}

}  // namespace

// PTX ISA 9.7.14.5.8, "Matrix Fragments for mma.m16n8k16 with floating point type".
void mma_m16n8k16(Half16 type, float* d, const uint32_t* a, const uint32_t* b, Loc loc) {
  need_full_warp("mma.m16n8k16", loc);
  Mma mine{type, d, a, b};
  warp_collective<Mma>(~0u, "mma.m16n8k16", loc, mine, [](Mma** lanes) {
    lanes[0]->type == Half16::bf16 ? multiply<Half16::bf16>(lanes) : multiply<Half16::f16>(lanes);
  });
}

}  // namespace dlops::simt
