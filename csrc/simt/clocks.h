// Who knows of what: vector clocks (Lamport 1978; Mattern 1989; FastTrack, Flanagan and Freund 2009), with short cuts for
// what CUDA programs do most, a barrier of the whole block.
//
// Components, each with a tick of its own: threads 0 .. n-1 of the gang; n + t, the asynchronous agent of thread t (its
// wgmma and TMA stores); 2n + m, mbarrier m, whose tick is its phase and stands for the TMA loads that it tracks.
#pragma once
#include <unordered_map>

#include "checker.h"

namespace dlops::simt {

struct Clock {  // component -> tick; what it does not hold is 0
  std::vector<uint32_t> ticks;
  uint32_t at(size_t id) const { return id < ticks.size() ? ticks[id] : 0; }
  void raise(size_t id, uint32_t tick) {
    if (id >= ticks.size()) ticks.resize(id + 1);
    ticks[id] = std::max(ticks[id], tick);
  }
  void merge(const Clock& o) {
    if (ticks.size() < o.ticks.size()) ticks.resize(o.ticks.size());
    for (size_t i = 0; i < o.ticks.size(); i++) ticks[i] = std::max(ticks[i], o.ticks[i]);
  }
};

struct Stamp {                // when somebody did something
  uint32_t id = 0, tick = 0;  // tick 0: never
};

struct Snapshot {
  const Thread* thread;
  Stamp stamp;  // of the operation
  Clock known;  // all that the thread knew, itself included
};

class Clocks {
 public:
  explicit Clocks(const Gang&);

  uint32_t id(const Thread& t) const { return static_cast<uint32_t>(t.block->rank * per_block_ + t.rank); }
  Stamp now(const Thread& t) const { return {id(t), tick_[id(t)]}; }
  bool knows(const Thread& t, Stamp s) const {
    if (s.id == id(t)) return true;
    if (s.id < n_ && (s.tick <= gang_floor_[s.id] ||
                      (s.id / per_block_ == unsigned(t.block->rank) && s.tick <= block_floor_[s.id])))
      return true;
    return s.tick <= block_known_[t.block->rank].at(s.id) || s.tick <= known_[id(t)].at(s.id);
  }
  static bool knows(const Snapshot& who, Stamp s) { return s.tick <= who.known.at(s.id); }

  void block_met(Block&);
  void gang_met();
  void met(Thread* const* threads, size_t count);
  void release(Thread&, const void* key);
  void acquire(Thread&, const void* key);
  void forget(const void* key) { keys_.erase(key); }
  void arrive(Thread&, const void* mbarrier);
  void complete_phase(const void* mbarrier);
  void acquire_phase(Thread&, const void* mbarrier);
  Ticket start(Thread&, const void* mbarrier);  // null: the thread's agent
  Ticket start_warp(Thread& first_lane);
  void acquire(Thread& t, const Ticket& ticket) { known_[id(t)].raise(ticket->stamp.id, ticket->stamp.tick); }

  // fence.proxy.async: what this thread wrote before is there for asynchronous operations that know of the fence.
  void fence_proxy(Thread& t) { fences_[id(t)].push_back(tick_[id(t)]++); }
  bool fenced(Stamp write, const Snapshot& reader) const;

 private:
  struct MBarrier {
    uint32_t id = 0, phase = 0;
    Clock arriving, complete;
  };
  MBarrier& mbarrier(const void* p);
  void learn(Clock&, Thread&);  // all that a thread knows; what it does later is not part of it

  uint32_t n_, per_block_;
  std::vector<uint32_t> tick_, agent_tick_;    // [n]
  std::vector<std::vector<uint32_t>> fences_;  // [n]: the ticks of a thread's proxy fences
  std::vector<uint32_t> block_floor_,
      gang_floor_;                  // [n]: ticks at the last barrier of the block, of the gang
  std::vector<Clock> block_known_;  // [blocks]: what else all of a block know since its last barrier
  std::vector<Clock> known_;        // [n]: what a thread knows besides
  std::unordered_map<const void*, Clock> keys_;
  std::unordered_map<const void*, MBarrier> mbarriers_;
};

}  // namespace dlops::simt
