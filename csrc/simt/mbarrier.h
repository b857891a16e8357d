// The 64 bits of an mbarrier in shared memory: its phase, the arrivals still missing, their number, and the bytes that
// copies have yet to deliver. (The hardware's own encoding is opaque: PTX ISA 9.7.13.15.1.)
#pragma once
#include "machine.h"

namespace dlops::simt {

struct MBarrierWord {
  int phase, pending, count, bytes;

  MBarrierWord(int count) : phase(0), pending(count), count(count), bytes(0) {}
  explicit MBarrierWord(const uint64_t* p)
      : phase(int(*p & 1)),
        pending(int(*p >> 1 & 0xfffff)),
        count(int(*p >> 21 & 0xfffff)),
        bytes(int(static_cast<int64_t>(*p) >> 41)) {}
  void store(uint64_t* p) const {
    *p = uint64_t(phase) | uint64_t(pending) << 1 | uint64_t(count) << 21 | uint64_t(int64_t(bytes)) << 41;
  }
};

void check_for_copies(uint64_t* bar, const char* what, Loc);  // that a copy may use it

// `bytes` more have landed for a copy that `issuer` started with this mbarrier.
void deliver(Thread& issuer, uint64_t* bar, int bytes, Loc);

}  // namespace dlops::simt
