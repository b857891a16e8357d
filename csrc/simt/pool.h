// Fiber stacks and shared-memory arenas, kept between launches: making one costs system calls.
#pragma once
#include <cstddef>
#include <memory>

namespace dlops::simt {

// Instrumented and unoptimised code needs more.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif

// What one OS thread uses while it runs gangs, one after another.
class Lease {
 public:
  Lease();
  ~Lease();  // back to the pool
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  void reset();  // the next gang starts with the first stack again
  char* stack();
  char* arena();

 private:
  struct Store;
  std::unique_ptr<Store> store_;
  size_t stacks_ = 0, arenas_ = 0;
};

}  // namespace dlops::simt
