// Four warps that issue wgmma together, and what they have under way.
#pragma once
#include "checker.h"
#include "tensor.h"

namespace dlops::simt {

// It runs when it is waited for; until then the accumulators are NaN.
struct PendingWgmma {
  Wgmma op;
  float* d[128];
  std::vector<uint32_t> a_registers;  // [128, 4], taken when it was issued
  std::vector<float> accumulators;    // [128, n/2]; those of the first op on these registers, then handed on
  bool first;                         // on these registers
  long group;
  Loc loc;
  Ticket tickets[4];  // of its warps
};

struct Warpgroup {
  Meeting meeting;
  std::vector<PendingWgmma> pending;
  long group = 0;
  bool fenced = false;  // wgmma.fence since the last full wait
};

Warpgroup& own_warpgroup(const char* what, Loc);

}  // namespace dlops::simt
