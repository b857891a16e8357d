// The race checker: two accesses of shared memory, one of them a write, must be ordered by what their threads know of each
// other (clocks.h), whatever order they happened to run in. It also finds reads of what nobody wrote, reads of copies that
// nobody waited for, and wgmma or TMA reading ordinary writes without fence.proxy.async.
#include "race.h"

#include "clocks.h"
#include "report.h"
#include "requests.h"
#include "shared.h"
#include "symbols.h"

namespace dlops::simt {

namespace {

struct Record {
  Stamp stamp;
  Access kind = Access::read;
  Place place;
};
struct Cell {
  Record write, atomics[2], reads[2];  // of several threads, the first and the last
};

// The history of a block's shared memory: one cell per `grain` bytes, which is a word until an access is narrower than that.
struct Shadow {
  size_t grain = 4;
  std::vector<Cell> cells;

  void cover(size_t bytes) {
    if (cells.size() * grain < bytes) cells.resize((bytes + grain - 1) / grain);
  }
  void refine(size_t offset, size_t bytes) {
    while ((offset | bytes) % grain) {
      std::vector<Cell> halves(2 * cells.size());
      for (size_t i = 0; i < halves.size(); i++) halves[i] = cells[i / 2];
      cells = std::move(halves);
      grain /= 2;
    }
  }
};

const char* verb(Access kind) {
  switch (kind) {
    case Access::read: return "reads";
    case Access::write: return "writes";
    case Access::atomic: return "atomically updates";
    case Access::async_read: return "reads (asynchronously)";
    case Access::async_write: return "writes (asynchronously)";
    case Access::pending: return "copies to";
  }
  return "";
}

bool writes(Access kind) { return kind != Access::read && kind != Access::async_read; }
bool overwrites(Access kind) { return writes(kind) && kind != Access::atomic; }

}  // namespace

struct RaceState {
  Clocks clocks;
  std::vector<Shadow> shadows;  // [blocks]
  Requests requests;

  explicit RaceState(const Gang& g) : clocks(g), shadows(g.blocks.size()) {}
};

namespace {

// One access: by a thread itself, or by an asynchronous operation of its.
struct Visit {
  Thread& thread;
  const Snapshot* snapshot;  // or null
  Record record;

  bool knows(const Clocks& c, Stamp s) const {
    return snapshot ? Clocks::knows(*snapshot, s) : c.knows(thread, s);
  }
};

[[noreturn]] void report(const Visit& v, const Block& b, size_t offset, const std::string& what) {
  fail_as(v.thread, Loc(describe(v.record.place).c_str(), 0), "thread %d %s %s%s", v.thread.rank,
          verb(v.record.kind), describe_shared(b, offset).c_str(), what.c_str());
}

// "thread 3 reads it at reduce.h:90"
std::string other(const Gang& g, const Record& r) {
  const int per = static_cast<int>(g.blocks[0].threads.size()), id = static_cast<int>(r.stamp.id);
  const int threads = g.thread_count();
  std::string who = id >= 2 * threads ? "a TMA load" : format("thread %d", id % threads % per);
  if (id < 2 * threads && g.blocks.size() > 1) who += format(" of block rank %d", id % threads / per);
  return who + " " + verb(r.kind) + " it at " + describe(r.place);
}

[[noreturn]] void race(const Visit& v, const Block& b, size_t offset, const Record& r) {
  report(v, b, offset, ", " + other(*v.thread.block->gang, r) + ", and nothing orders the two: a race");
}

void check(const Visit& v, Block& b, size_t offset, size_t bytes) {
  RaceState& state = *v.thread.block->gang->race;
  const Access kind = v.record.kind;
  if (!bytes) return;
  if (b.live == 0 && &b != v.thread.block) report(v, b, offset, ", and that block has returned");
  if (!find_variable(b, offset, bytes))
    // A cluster's other block may not have come to its first declaration yet.
    report(v, b, offset,
           b.variables.empty() ? ", which was never written" : ": outside of every shared variable");
  Shadow& shadow = state.shadows[b.rank];
  shadow.cover(b.shared_used);
  shadow.refine(offset, bytes);
  for (size_t i = offset / shadow.grain; i < (offset + bytes) / shadow.grain; i++) {
    Cell& cell = shadow.cells[i];
    const Record& w = cell.write;
    auto ordered = [&](const Record& r) {
      if (r.stamp.tick && !v.knows(state.clocks, r.stamp)) race(v, b, offset, r);
    };
    if (w.kind == Access::pending && w.stamp.tick && !writes(kind))
      report(v, b, offset,
             ", the target of a copy that has not been waited for, requested at " + describe(w.place));
    ordered(w);
    if (kind != Access::atomic)
      for (const Record& r : cell.atomics) ordered(r);
    if (!w.stamp.tick && !overwrites(kind)) report(v, b, offset, ", which was never written");
    if (kind == Access::async_read && w.kind == Access::write && !state.clocks.fenced(w.stamp, *v.snapshot))
      report(v, b, offset, ", which has had no fence.proxy.async since the write at " + describe(w.place));
    if (writes(kind))
      for (const Record& r : cell.reads) ordered(r);
    if (overwrites(kind)) {
      cell = Cell{v.record, {}, {}};
      continue;
    }
    Record(&slots)[2] = kind == Access::atomic ? cell.atomics : cell.reads;
    const bool first = !slots[0].stamp.tick || slots[0].stamp.id == v.record.stamp.id;
    slots[first ? 0 : 1] = v.record;
  }
}

// The block whose shared memory holds p; null: none of the gang's.
Block* owner(const Thread& t, const void* p) {
  Block& own = *t.block;
  auto holds = [&](const Block& b) {
    return static_cast<size_t>(static_cast<const char*>(p) - b.shared) < kArena;
  };
  if (holds(own)) return &own;
  if (own.gang->blocks.size() > 1)
    for (Block& b : own.gang->blocks)
      if (holds(b)) return &b;
  return nullptr;
}

void visit(const Visit& v, const void* p, size_t bytes) {
  Block* b = owner(v.thread, p);
  if (!b) return;
  check(v, *b, static_cast<size_t>(static_cast<const char*>(p) - b->shared), bytes);
}

struct RaceChecker : Checker {
  RaceChecker() { checker = this; }
  static Clocks& clocks(const Thread& t) { return t.block->gang->race->clocks; }

  void begin(Gang& g) override {
    g.race = std::make_shared<RaceState>(g);
    g.race->requests.on = g.recording != nullptr;
  }
  void end(Gang& g) override { g.race->requests.finish(g.counters); }
  void block_met(Block& b) override { b.gang->race->clocks.block_met(b); }
  void gang_met(Gang& g) override { g.race->clocks.gang_met(); }
  void met(Thread* const* threads, size_t count) override { clocks(*threads[0]).met(threads, count); }
  void release(Thread& t, const void* key) override { clocks(t).release(t, key); }
  void acquire(Thread& t, const void* key) override { clocks(t).acquire(t, key); }
  void forget(const void* key) override { clocks(*self()).forget(key); }
  void arrive(Thread& t, const void* m) override { clocks(t).arrive(t, m); }
  void complete_phase(Gang& g, const void* m) override { g.race->clocks.complete_phase(m); }
  void acquire_phase(Thread& t, const void* m) override { clocks(t).acquire_phase(t, m); }
  Ticket start(Thread& t, const void* m) override { return clocks(t).start(t, m); }
  Ticket start_warp(Thread& t) override { return clocks(t).start_warp(t); }
  void acquire(Thread& t, const Ticket& ticket) override { clocks(t).acquire(t, ticket); }
  void fence_proxy(Thread& t) override { clocks(t).fence_proxy(t); }

  void access(Thread& t, const void* p, size_t bytes, Access kind, Loc loc) override {
    visit({t, nullptr, {clocks(t).now(t), kind, {loc.file, loc.line}}}, p, bytes);
  }
  void access(const Ticket& ticket, const void* p, size_t bytes, Access kind, Loc loc) override {
    Thread& t = *const_cast<Thread*>(ticket->thread);
    visit({t, ticket.get(), {ticket->stamp, kind, {loc.file, loc.line}}}, p, bytes);
  }
} race_checker;

}  // namespace

// threadIdx and its like, and parameters, are no memory on a GPU; here they are the machine's.
static bool is_register(const Thread& t, const void* p) {
  auto within = [p](const void* first, size_t bytes) {
    return static_cast<size_t>(static_cast<const char*>(p) - static_cast<const char*>(first)) < bytes;
  };
  const std::vector<Thread>& threads = t.block->threads;
  return within(&here, sizeof here) || within(threads.data(), threads.size() * sizeof(Thread)) ||
         within(t.block->gang, sizeof(Gang)) ||
         within(t.block->gang->config.arguments, t.block->gang->config.argument_bytes);
}

// A load or store of the kernel's own (tsan.cpp).
void plain_access(const void* p, size_t bytes, bool write, const void* pc) {
  Thread& t = *self();
  RaceState& state = *t.block->gang->race;
  if (Block* b = owner(t, p)) {
    const size_t offset = static_cast<size_t>(static_cast<const char*>(p) - b->shared);
    const Record record{state.clocks.now(t), write ? Access::write : Access::read, {pc, 0}};
    check({t, nullptr, record}, *b, offset, bytes);
    if (state.requests.on) state.requests.shared(t, offset, bytes, pc);
  } else if (state.requests.on && !is_register(t, p)) {
    state.requests.global(t, p, bytes, pc);
  }
}

}  // namespace dlops::simt
