// mbarriers (PTX ISA 9.7.13.15): a phase ends when every arrival has come and every expected byte has landed.
#include "mbarrier.h"

#include "checker.h"
#include "report.h"
#include "schedule.h"
#include "shared.h"
#include "tensor.h"

namespace dlops::simt {

namespace {

MBarrierInfo& info_of(Thread& t, uint64_t* bar, Loc loc) {
  Block& b = *t.block;
  const auto offset = static_cast<size_t>(reinterpret_cast<char*>(bar) - b.shared);
  auto it = b.mbarriers.find(static_cast<uint32_t>(offset + kSharedBase));
  if (it == b.mbarriers.end()) fail_as(t, loc, "this mbarrier was never initialised");
  return it->second;
}

void settle(Gang& g, MBarrierInfo& info, MBarrierWord w, uint64_t* bar) {
  if (w.pending == 0 && w.bytes == 0) {
    w.phase ^= 1;
    w.pending = w.count;
    if (checker) checker->complete_phase(g, bar);
    for (Thread* t : info.waiting) wake(t);
    info.waiting.clear();
  }
  w.store(bar);
}

}  // namespace

void mbarrier_init(uint64_t* bar, uint32_t count, Loc loc) {
  const uint32_t address = shared_address(bar, loc);
  if (address % 8) fail(loc, "mbarrier.init: shared address 0x%x is not aligned to 8 bytes", address);
  if (count < 1 || count >= 1 << 20) fail(loc, "mbarrier.init: a count of %u is outside [1, 2^20)", count);
  if (checker) checker->access(*self(), bar, 8, Access::write, loc);
  self()->block->mbarriers[address] = {loc, self(), false, {}};
  MBarrierWord(static_cast<int>(count)).store(bar);
}

// Makes the initialisation known to the asynchronous proxy and to the cluster.
void fence_mbarrier_init(Loc) {
  for (auto& [address, info] : self()->block->mbarriers)
    if (info.initialiser == self()) info.fenced = true;
}

void check_for_copies(uint64_t* bar, const char* what, Loc loc) {
  const MBarrierInfo& info = info_of(*self(), bar, loc);
  if (!info.fenced)
    fail(loc, "%s: its mbarrier was initialised at %s, and no fence_mbarrier_init followed there", what,
         str(info.initialised).c_str());
}

void mbarrier_arrive(uint64_t* bar, uint32_t expect_bytes, Loc loc) {
  MBarrierInfo& info = info_of(*self(), bar, loc);
  if (checker) {
    checker->access(*self(), bar, 8, Access::atomic, loc);
    checker->arrive(*self(), bar);
  }
  MBarrierWord w(bar);
  if (w.pending == 0) fail(loc, "more arrivals at the mbarrier than its count of %d", w.count);
  w.bytes += static_cast<int>(expect_bytes);
  w.pending--;
  settle(*self()->block->gang, info, w, bar);
}

void mbarrier_wait(uint64_t* bar, uint32_t parity, Loc loc) {
  MBarrierInfo& info = info_of(*self(), bar, loc);
  if (checker) checker->access(*self(), bar, 8, Access::atomic, loc);
  while (static_cast<uint32_t>(MBarrierWord(bar).phase) == parity) {
    self()->waits_at = shared_address(bar, loc);
    self()->waits_parity = parity;
    info.waiting.push_back(self());
    wait("mbarrier_wait", loc);
    self()->waits_at = 0;
  }
  if (checker) checker->acquire_phase(*self(), bar);
}

void deliver(Thread& issuer, uint64_t* bar, int bytes, Loc loc) {
  MBarrierWord w(bar);
  w.bytes -= bytes;
  if (w.bytes < 0)
    fail_as(issuer, loc, "TMA delivers %d bytes more than the mbarrier was told to expect", -w.bytes);
  settle(*issuer.block->gang, info_of(issuer, bar, loc), w, bar);
}

void fence_proxy_async(Loc) {
  if (checker) checker->fence_proxy(*self());
}

}  // namespace dlops::simt
