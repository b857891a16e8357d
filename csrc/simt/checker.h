// What a memory checker is told. The race build links one (race.cpp); elsewhere `checker` stays null.
#pragma once
#include "machine.h"

namespace dlops::simt {

enum class Access : uint8_t {
  read,
  write,
  atomic,
  async_read,   // by the asynchronous proxy: wgmma, TMA
  async_write,  //
  pending,      // the target of a copy that has not landed
};

// An asynchronous operation: who does it, and what its thread knew when it started it.
struct Snapshot;
using Ticket = std::shared_ptr<const Snapshot>;

struct Checker {
  virtual ~Checker() = default;
  virtual void begin(Gang&) = 0;
  virtual void end(Gang&) = 0;
  // These have met: each has seen what the others did before.
  virtual void block_met(Block&) = 0;
  virtual void gang_met(Gang&) = 0;
  virtual void met(Thread* const* threads, size_t count) = 0;
  // Through a named barrier: the key learns what the thread knows; the thread learns what the key does.
  virtual void release(Thread&, const void* key) = 0;
  virtual void acquire(Thread&, const void* key) = 0;
  virtual void forget(const void* key) = 0;
  // Through an mbarrier: what arrivals release is there to acquire when their phase is over.
  virtual void arrive(Thread&, const void* mbarrier) = 0;
  virtual void complete_phase(Gang&, const void* mbarrier) = 0;
  virtual void acquire_phase(Thread&, const void* mbarrier) = 0;
  // Asynchronous operations. One that an mbarrier tracks is known to those who waited for its phase; the others are known
  // to threads that have waited for the operation itself.
  virtual Ticket start(Thread&, const void* mbarrier) = 0;
  virtual Ticket start_warp(Thread& first_lane) = 0;  // by all lanes together
  virtual void acquire(Thread&, const Ticket&) = 0;
  virtual void access(const Ticket&, const void* p, size_t bytes, Access, Loc) = 0;

  virtual void access(Thread&, const void* p, size_t bytes, Access, Loc) = 0;
  virtual void fence_proxy(Thread&) = 0;
};
extern Checker* checker;

}  // namespace dlops::simt
