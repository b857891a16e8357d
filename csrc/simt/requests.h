// Counts what the memory system would be asked for: bank conflicts of shared memory, 32-byte sectors of global memory.
//
// The lanes of a warp run one after another here, so which accesses make one request is inferred: the k-th time that a lane
// executes an instruction goes with the k-th time of the other lanes. That is exact where the lanes do not diverge.
#pragma once
#include <unordered_map>

#include "machine.h"

namespace dlops::simt {

class Requests {
 public:
  bool on = false;
  void shared(const Thread&, uint64_t offset, size_t bytes, const void* pc);
  void global(const Thread&, const void* p, size_t bytes, const void* pc);
  void finish(Counters&);

 private:
  struct Request {
    uint64_t address[32];
    uint32_t lanes = 0;
  };
  struct Site {  // one instruction in one warp
    bool shared = false;
    uint32_t bytes = 0;
    size_t seen[32] = {};  // how often each lane came
    size_t first = 0;      // requests before this one are complete
    std::vector<Request> open;
  };
  void add(const Thread&, bool shared, uint64_t address, size_t bytes, const void* pc);
  void count(const Site&, const Request&);

  std::unordered_map<const void*, std::vector<Site>> sites_;  // instruction -> [warp of the gang]
  Counters counters_;
};

}  // namespace dlops::simt
