#include "pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#include "machine.h"
#include "sanitizer.h"
#include "shared.h"

namespace dlops::simt {

struct Lease::Store { std::vector<char*> stacks, arenas; };

namespace {

constexpr size_t kPage = 4096;
std::mutex lock;
template <class S>
std::vector<std::unique_ptr<S>>& idle() {
  static auto* stores =
      new std::vector<std::unique_ptr<S>>;  // never destroyed: OS threads may outlive statics
  return *stores;
}

char* new_stack() {
  void* p = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
  if (p == MAP_FAILED)
    throw Error(
        "no memory for one more thread's stack: launch fewer threads at once (each takes two mappings of "
        "vm.max_map_count)");
  mprotect(p, kPage, PROT_NONE);  // a stack that overflows faults here
  return static_cast<char*>(p) + kPage;
}

}  // namespace

Lease::Lease() {
  std::lock_guard guard(lock);
  auto& stores = idle<Store>();
  if (stores.empty()) {
    store_ = std::make_unique<Store>();
  } else {
    store_ = std::move(stores.back());
    stores.pop_back();
  }
}
Lease::~Lease() {
  std::lock_guard guard(lock);
  idle<Store>().push_back(std::move(store_));
}
void Lease::reset() { stacks_ = arenas_ = 0; }

char* Lease::stack() {
  if (stacks_ == store_->stacks.size()) store_->stacks.push_back(new_stack());
  char* s = store_->stacks[stacks_++];
  ASAN_UNPOISON_MEMORY_REGION(s, kStack);  // a fiber that was dropped left its marks
  return s;
}
char* Lease::arena() {
  if (arenas_ == store_->arenas.size()) {
    void* p = std::aligned_alloc(1024, kArena);
    if (!p) throw Error("no memory for one more block's shared memory");
    store_->arenas.push_back(static_cast<char*>(p));
  }
  return store_->arenas[arenas_++];
}

}  // namespace dlops::simt
