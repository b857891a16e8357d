// Scratch memory that persists between calls: a fresh large allocation costs more in page faults than most kernels run.
// Blocks belong to a pool; empty_cache() frees the idle ones. Thread-safe.
#pragma once
#include <cstddef>

#include "../api.h"

namespace dlops::cpu {

class Scratch {
 public:
  explicit Scratch(size_t bytes);  // throws std::bad_alloc
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;  // 64-byte aligned
  size_t bytes_;
};

DLOPS_API size_t empty_cache();  // frees idle blocks; returns their bytes

}  // namespace dlops::cpu
