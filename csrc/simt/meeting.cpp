// Barriers and collectives: all of them are a Meeting.
#include <algorithm>
#include <bit>

#include "checker.h"
#include "report.h"
#include "schedule.h"
#include "shared.h"
#include "tensor.h"
#include "warpgroup.h"

namespace dlops::simt {

namespace {

struct Call {  // what one thread brings to a meeting
  const char* what;
  Loc loc;
  int need;
  uint32_t mask = ~0u;
  int slot = 0;
  void* argument = nullptr;
  Run run = nullptr;
};

// True in the thread that came last: everyone is there, and still waits.
inline bool arrive(Meeting& m, const Call& c) {
  if (m.arrived == 0) {
    m.what = c.what;
    m.loc = c.loc;
    m.need = c.need;
    m.mask = c.mask;
    if (c.mask != ~0u) std::fill(m.arguments.begin(), m.arguments.end(), nullptr);  // else all are set anew
  } else if (m.need != c.need || m.mask != c.mask || (m.what != c.what && std::strcmp(m.what, c.what)) ||
             !(m.loc == c.loc)) {
    fail(c.loc,
         "divergence: reaches %s (mask %08x, %d threads) while %d threads wait in %s (mask %08x, %d threads) "
         "at %s",
         c.what, c.mask, c.need, m.arrived, m.what, m.mask, m.need, str(m.loc).c_str());
  }
  if (c.argument) {
    if (m.arguments.size() <= static_cast<size_t>(c.slot)) m.arguments.resize(c.need > 32 ? 128 : 32);
    m.arguments[c.slot] = c.argument;
  }
  return ++m.arrived == c.need;
}

void wait_in(Meeting& m, const Call& c) {
  m.waiting.push_back(self());
  self()->meeting = &m;
  wait(c.what, c.loc);
}

void dissolve(Meeting& m) {
  for (Thread* t : m.waiting) wake(t);
  m.waiting.clear();
  m.arrived = 0;
}

// Among the caller and those who wait in the meeting.
void order_memory(Meeting& m) {
  if (!checker) return;
  m.waiting.push_back(self());
  checker->met(m.waiting.data(), m.waiting.size());
  m.waiting.pop_back();
}

// Where the lanes of a warp have split: the meeting of exactly these lanes, else an idle one. A lane of the mask may wait in
// another meeting: it comes here when that is over, or the launch ends in a deadlock, which names both.
Meeting* split_meeting(Warp& w, uint32_t mask) {
  Meeting* idle = nullptr;
  for (auto& m : w.meetings) {
    if (m->arrived && m->mask == mask) return m.get();
    if (!m->arrived) idle = m.get();
  }
  return idle ? idle : w.meetings.emplace_back(std::make_unique<Meeting>()).get();
}

}  // namespace

void meet_warp(uint32_t mask, const char* what, Loc loc, void* argument, Run run, Orders orders) {
  Thread& me = *self();
  Block& b = *me.block;
  Warp& w = b.warps[me.warp];
  mask &= w.lanes;
  if (!(mask >> me.lane & 1))
    fail(loc, "%s: lane %d, which calls it, is not in its mask %08x", what, me.lane, mask);
  if (w.exited & mask)
    fail(loc, "%s: lane %d is in the mask %08x but has returned", what, std::countr_zero(w.exited & mask),
         mask);
  Meeting* m = w.meetings.empty() ? nullptr : w.meetings[0].get();
  if (!m || w.meetings.size() > 1 || (m->arrived && m->mask != mask)) m = split_meeting(w, mask);
  const Call call{what, loc, std::popcount(mask), mask, me.lane, argument, run};
  if (!arrive(*m, call)) return wait_in(*m, call);
  b.gang->counters.warp_collectives++;
  if (run) run(m->arguments.data());
  if (orders == Orders::memory) order_memory(*m);
  dissolve(*m);
}

void meet_warpgroup(const char* what, Loc loc, void* argument, Run run) {
  Warpgroup& g = own_warpgroup(what, loc);
  const Call call{what, loc, 128, ~0u, self()->rank % 128, argument, run};
  if (!arrive(g.meeting, call)) return wait_in(g.meeting, call);
  if (run) run(g.meeting.arguments.data());
  dissolve(g.meeting);
}

void block_barrier(const char* what, Loc loc) {
  Block& b = *self()->block;
  const int all = static_cast<int>(b.threads.size());
  if (b.live < all) fail(loc, "%s: %d threads of the block have already returned", what, all - b.live);
  Meeting& m = b.barriers[0];
  const Call call{what, loc, all};
  if (!arrive(m, call)) return wait_in(m, call);
  b.gang->counters.barriers++;
  if (checker) checker->block_met(b);
  dissolve(m);
}

// Threads may reach a named barrier from several lines, and some only arrive.
void named_barrier(int id, int threads, bool waits, Loc loc) {
  const char* what = waits ? "bar.sync" : "bar.arrive";
  Block& b = *self()->block;
  if (id < 1 || id > 15) fail(loc, "%s: barrier %d: there are 1 to 15 (0 is __syncthreads)", what, id);
  if (threads < 32 || threads % 32 || threads > static_cast<int>(b.threads.size()))
    fail(loc, "%s: %d threads: must be a multiple of 32, at most the block's %zu", what, threads,
         b.threads.size());
  Meeting& m = b.barriers[id];
  if (m.arrived == 0) {
    m.what = "bar.sync";
    m.loc = loc;
    m.need = threads;
  } else if (m.need != threads) {
    fail(loc, "%s %d: %d threads, but at %s it is said to have %d", what, id, threads, str(m.loc).c_str(),
         m.need);
  }
  if (checker) checker->release(*self(), &m);
  if (++m.arrived < threads) {
    if (!waits) return;
    m.waiting.push_back(self());
    self()->meeting = &m;
    return wait("bar.sync", loc);
  }
  b.gang->counters.barriers++;
  if (checker) {
    if (waits) checker->acquire(*self(), &m);
    for (Thread* t : m.waiting) checker->acquire(*t, &m);
    checker->forget(&m);
  }
  dissolve(m);
}
void named_barrier_sync(int id, int threads, Loc loc) { named_barrier(id, threads, true, loc); }
void named_barrier_arrive(int id, int threads, Loc loc) { named_barrier(id, threads, false, loc); }

static void gang_barrier(const char* what, Loc loc) {
  Gang& g = *self()->block->gang;
  if (g.live < g.thread_count())
    fail(loc, "%s: %d threads have already returned", what, g.thread_count() - g.live);
  const Call call{what, loc, g.thread_count()};
  if (!arrive(g.everyone, call)) return wait_in(g.everyone, call);
  g.counters.barriers++;
  if (checker) checker->gang_met(g);
  dissolve(g.everyone);
}
void cluster_sync(Loc loc) { gang_barrier("cluster.sync", loc); }
void grid_sync(Loc loc) {
  if (!self()->block->gang->config.cooperative) fail(loc, "grid.sync in a launch that is not cooperative");
  gang_barrier("grid.sync", loc);
}

uint32_t cluster_rank() {
  return self()->block->gang->config.cooperative ? 0 : static_cast<uint32_t>(self()->block->rank);
}

void* cluster_map(const void* p, uint32_t rank, Loc loc) {
  const Gang& g = *self()->block->gang;
  if (g.config.cooperative || rank >= g.blocks.size()) fail(loc, "rank %u is not in the cluster", rank);
  const Block& other = g.blocks[rank];
  if (other.live == 0) fail(loc, "the shared memory of rank %u is gone: all its threads have returned", rank);
  return shared_pointer(other, shared_address(p, loc));
}

}  // namespace dlops::simt
