// wgmma (PTX ISA 9.7.15): it reads shared memory when it is waited for, and its accumulators are NaN until then, so that a
// missing wait and a tile that is overwritten too early both show.
#include <algorithm>

#include "checker.h"
#include "fragment.h"
#include "shared.h"
#include "swizzle.h"
#include "warpgroup.h"

namespace dlops::simt {

Warpgroup& own_warpgroup(const char* what, Loc loc) {
  const size_t i = static_cast<size_t>(self()->rank) / 128;
  if (i >= self()->block->warpgroups.size()) fail(loc, "%s: the block has no whole warpgroup here", what);
  return *self()->block->warpgroups[i];
}

namespace {

// A matrix descriptor (PTX ISA 9.7.15.5.1.2, "Matrix Descriptor Format").
struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t swizzle;                 // as in swizzle.h
  uint32_t span;                    // bytes that it permutes; 16 where it does not

  explicit Descriptor(uint64_t d)
      : start((d & 0x3fff) << 4),
        leading((d >> 16 & 0x3fff) << 4),
        stride((d >> 32 & 0x3fff) << 4),
        swizzle(d >> 62 ? 4 - uint32_t(d >> 62) : 0),
        span(16u << swizzle) {}

  // Of the 16-byte chunk that holds 8 elements from (mn, k) on: along k, or along mn where that is contiguous
  // (PTX ISA 9.7.15.5.1.1, "Shared Memory Matrix Layout"). Core matrices are 8 rows of 16 bytes.
  uint32_t chunk(int mn, int k, bool mn_major) const {
    uint32_t offset;
    if (mn_major) {
      const int per = static_cast<int>(span / 2);  // elements of mn in one row of an atom
      offset = mn % per * 2 + mn / per * (swizzle ? leading : stride) + k % 8 * span +
               k / 8 * (swizzle ? stride : leading);
    } else {
      offset = mn % 8 * span + mn / 8 * stride + (swizzle ? k * 2 : k / 8 * leading);
    }
    return swizzled(start + offset, swizzle);
  }
};

// out[k][mn], k < 16.
template <Half16 type>
void load_operand(const PendingWgmma& p, bool of_a, int rows, float* out) {
  const uint64_t bits = of_a ? p.op.a : p.op.b;
  const bool mn_major = of_a ? p.op.mn_major_a : p.op.mn_major_b;
  const Descriptor d(bits);
  const int steps = mn_major ? 16 : rows, chunks = mn_major ? rows / 8 : 2;
  for (int i = 0; i < steps; i++)
    for (int c = 0; c < chunks; c++) {
      const int mn = mn_major ? 8 * c : i, k = mn_major ? i : 8 * c;
      const char* from = shared_pointer(d.chunk(mn, k, mn_major), 16, "wgmma", p.loc);
      for (int w = 0; checker && w < 4; w++)  // a warp reads its 16 rows of A, and all of B
        if (!of_a || mn / 16 == w) checker->access(p.tickets[w], from, 16, Access::async_read, p.loc);
      uint16_t h[8];
      std::memcpy(h, from, sizeof h);
      for (int e = 0; e < 8; e++)
        out[mn_major ? k * rows + mn + e : (k + e) * rows + mn] = to_float<type>(h[e]);
    }
}

// Value i of thread t in D[64, n] (PTX ISA 9.7.15.5.2, "Accumulator D").
int d_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
int d_column(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

template <Half16 type>
void execute(PendingWgmma& p) {
  const int n = p.op.n, own = n / 2;
  std::vector<float> a(16 * 64), b(16 * n), d(64 * n);  // [k][m], [k][n], [m][n]
  if (p.op.a_registers) {
    for (int t = 0; t < 128; t++)
      for (int i = 0; i < 4; i++) {
        const int m = t / 32 * 16 + fragment_row(t % 32, i), k = fragment_k(t % 32, i);
        a[k * 64 + m] = low<type>(p.a_registers[4 * t + i]);
        a[(k + 1) * 64 + m] = high<type>(p.a_registers[4 * t + i]);
      }
  } else {
    load_operand<type>(p, true, 64, a.data());
  }
  load_operand<type>(p, false, n, b.data());
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < own; i++)
      d[d_row(t, i) * n + d_column(t, i)] = p.op.accumulate ? p.accumulators[t * own + i] : 0.f;
  for (int m = 0; m < 64; m++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < n; j++) d[m * n + j] += a[k * 64 + m] * b[k * n + j];
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < own; i++) p.accumulators[t * own + i] = d[d_row(t, i) * n + d_column(t, i)];
}

void check_operand(const Thread& t, const char* name, uint64_t bits, Loc loc) {
  const Descriptor d(bits);  // base_offset 0: the pattern must start here (9.7.15.5.1.2)
  if (swizzled(d.start, d.swizzle) != d.start)
    fail_as(t, loc, "wgmma: %s at shared 0x%x does not start its swizzle pattern: align it to %u bytes", name,
            d.start, 8 * d.span);
}

struct Issue {
  const Wgmma* op;
  float* d;
  Loc loc;
};

void issue(Issue** threads) {
  Warpgroup& g = own_warpgroup("wgmma", threads[0]->loc);
  const Wgmma& op = *threads[0]->op;
  const Loc loc = threads[0]->loc;
  if (!g.fenced) fail(loc, "wgmma without wgmma_fence since the registers were last used");
  for (int t = 1; t < 128; t++)
    if (threads[t]->op->a != op.a || threads[t]->op->b != op.b || threads[t]->op->accumulate != op.accumulate)
      fail(loc, "wgmma: thread %d of the warpgroup brings another descriptor or predicate than thread 0", t);
  if (!op.a_registers) check_operand(*self(), "A", op.a, loc);
  check_operand(*self(), "B", op.b, loc);

  PendingWgmma& p = g.pending.emplace_back();
  p.op = op;
  p.group = g.group;
  p.loc = loc;
  p.first = true;
  Thread* first = &self()->block->threads[self()->rank / 128 * 128];
  for (int w = 0; checker && w < 4; w++) p.tickets[w] = checker->start_warp(first[32 * w]);
  for (const PendingWgmma& earlier : g.pending)
    if (&earlier != &p && earlier.d[0] == threads[0]->d) p.first = false;
  p.accumulators.resize(64 * op.n);
  for (int t = 0; t < 128; t++) {
    p.d[t] = threads[t]->d;
    if (op.a_registers)
      p.a_registers.insert(p.a_registers.end(), threads[t]->op->a_registers, threads[t]->op->a_registers + 4);
    if (p.first) std::copy(p.d[t], p.d[t] + op.n / 2, &p.accumulators[t * (op.n / 2)]);
    std::fill(p.d[t], p.d[t] + op.n / 2, NAN);
  }
}

// Runs the groups before `keep`, in order.
void complete(Warpgroup& g, long keep) {
  size_t done = 0;
  for (; done < g.pending.size() && g.pending[done].group < keep; done++) {
    PendingWgmma& p = g.pending[done];
    p.op.type == Half16::bf16 ? execute<Half16::bf16>(p) : execute<Half16::f16>(p);
    for (int t = 0; checker && t < 128; t++)
      for (const Ticket& ticket : p.tickets)
        checker->acquire(self()->block->threads[self()->rank / 128 * 128 + t], ticket);
    size_t later = done + 1;  // the next one that accumulates on these registers
    while (later < g.pending.size() && g.pending[later].d[0] != p.d[0]) later++;
    if (later < g.pending.size()) {
      g.pending[later].accumulators = std::move(p.accumulators);
    } else {
      const int own = p.op.n / 2;
      for (int t = 0; t < 128; t++) std::copy_n(&p.accumulators[t * own], own, p.d[t]);
    }
  }
  g.pending.erase(g.pending.begin(), g.pending.begin() + static_cast<std::ptrdiff_t>(done));
  if (g.pending.empty()) g.fenced = false;
}

}  // namespace

void wgmma(float* d, const Wgmma& op, Loc loc) {
  Issue mine{&op, d, loc};
  meet_warpgroup("wgmma", loc, &mine, [](void** threads) { issue(reinterpret_cast<Issue**>(threads)); });
}
void wgmma_fence(Loc loc) {
  Issue mine{nullptr, nullptr, loc};
  meet_warpgroup("wgmma.fence", loc, &mine,
                 [](void**) { own_warpgroup("wgmma.fence", self()->loc).fenced = true; });
}
void wgmma_commit(Loc loc) {
  Issue mine{nullptr, nullptr, loc};
  meet_warpgroup("wgmma.commit_group", loc, &mine,
                 [](void**) { own_warpgroup("wgmma.commit_group", self()->loc).group++; });
}
void wgmma_wait(int pending, Loc loc) {
  int mine = pending;
  meet_warpgroup("wgmma.wait_group", loc, &mine, [](void** threads) {
    Warpgroup& g = own_warpgroup("wgmma.wait_group", self()->loc);
    complete(g, g.group - *static_cast<int*>(threads[0]));
  });
}

}  // namespace dlops::simt
