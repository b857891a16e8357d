#include "clocks.h"

#include <algorithm>

namespace dlops::simt {

Clocks::Clocks(const Gang& g)
    : n_(static_cast<uint32_t>(g.thread_count())),
      per_block_(static_cast<uint32_t>(g.blocks[0].threads.size())),
      tick_(n_, 1),
      agent_tick_(n_),
      fences_(n_),
      block_floor_(n_),
      gang_floor_(n_),
      block_known_(g.blocks.size()),
      known_(n_) {}

void Clocks::block_met(Block& b) {
  Clock& all = block_known_[b.rank];
  for (const Thread& t : b.threads) {
    Clock& own = known_[id(t)];
    all.merge(own);
    own.ticks.clear();
    block_floor_[id(t)] = tick_[id(t)]++;
  }
}

void Clocks::gang_met() {
  Clock all;
  for (const Clock& c : block_known_) all.merge(c);
  for (Clock& c : known_) {
    all.merge(c);
    c.ticks.clear();
  }
  for (Clock& c : block_known_) c = all;
  for (uint32_t t = 0; t < n_; t++) block_floor_[t] = gang_floor_[t] = tick_[t]++;
}

void Clocks::met(Thread* const* threads, size_t count) {
  Clock all;
  for (size_t i = 0; i < count; i++) {
    all.merge(known_[id(*threads[i])]);
    all.raise(id(*threads[i]), tick_[id(*threads[i])]++);
  }
  for (size_t i = 0; i < count; i++) known_[id(*threads[i])] = all;
}

// Barriers in shared memory join threads of one block, which share its floor: only the rest has to travel.
void Clocks::release(Thread& t, const void* key) {
  Clock& c = keys_[key];
  c.merge(known_[id(t)]);
  c.raise(id(t), tick_[id(t)]++);
}
void Clocks::acquire(Thread& t, const void* key) { known_[id(t)].merge(keys_[key]); }

Clocks::MBarrier& Clocks::mbarrier(const void* p) {
  auto [it, fresh] = mbarriers_.try_emplace(p);
  if (fresh) it->second.id = 2 * n_ + static_cast<uint32_t>(mbarriers_.size()) - 1;
  return it->second;
}
void Clocks::arrive(Thread& t, const void* p) {
  Clock& c = mbarrier(p).arriving;
  c.merge(known_[id(t)]);
  c.raise(id(t), tick_[id(t)]++);
}
void Clocks::complete_phase(const void* p) {
  MBarrier& m = mbarrier(p);
  m.phase++;
  m.complete = m.arriving;
  m.complete.raise(m.id, m.phase);
  m.arriving.ticks.clear();
}
void Clocks::acquire_phase(Thread& t, const void* p) { known_[id(t)].merge(mbarrier(p).complete); }

void Clocks::learn(Clock& c, Thread& t) {
  c.merge(known_[id(t)]);
  c.merge(block_known_[t.block->rank]);
  for (const Thread& other : t.block->threads) c.raise(id(other), block_floor_[id(other)]);
  for (uint32_t other = 0; other < n_; other++) c.raise(other, gang_floor_[other]);
  c.raise(id(t), tick_[id(t)]++);
}

Ticket Clocks::start(Thread& t, const void* p) {
  auto s = std::make_shared<Snapshot>();
  s->thread = &t;
  s->stamp = p ? Stamp{mbarrier(p).id, mbarrier(p).phase + 1} : Stamp{n_ + id(t), ++agent_tick_[id(t)]};
  learn(s->known, t);
  s->known.raise(s->stamp.id, s->stamp.tick);
  return s;
}

Ticket Clocks::start_warp(Thread& first) {
  auto s = std::make_shared<Snapshot>();
  s->thread = &first;
  s->stamp = {n_ + id(first), ++agent_tick_[id(first)]};
  learn(s->known, first);  // the floors are the block's: the other lanes add what they know besides
  for (Thread* t = &first + 1; t < &first + 32; t++) {
    s->known.merge(known_[id(*t)]);
    s->known.raise(id(*t), tick_[id(*t)]++);
  }
  s->known.raise(s->stamp.id, s->stamp.tick);
  return s;
}

bool Clocks::fenced(Stamp write, const Snapshot& reader) const {
  if (write.id >= n_) return true;  // asynchronous itself
  const std::vector<uint32_t>& fences = fences_[write.id];
  const auto after = std::lower_bound(fences.begin(), fences.end(), write.tick);
  return after != fences.end() && *after <= reader.known.at(write.id);
}

}  // namespace dlops::simt
