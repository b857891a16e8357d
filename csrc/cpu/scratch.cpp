#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace dlops::cpu {
namespace {

struct Block {
  void* memory;
  size_t bytes;
};

// Never destroyed: kernels may run while the process exits.
struct Pool {
  std::mutex mutex;
  std::vector<Block> idle;
};
Pool& pool() {
  static Pool* p = new Pool;
  return *p;
}

}  // namespace

Scratch::Scratch(size_t bytes) : memory_(nullptr), bytes_(bytes ? (bytes + 4095) / 4096 * 4096 : 4096) {
  {
    std::lock_guard<std::mutex> lock(pool().mutex);
    auto& idle = pool().idle;
    size_t best = idle.size();  // the smallest block that is large enough, and at most 4 times larger
    for (size_t i = 0; i < idle.size(); i++)
      if (idle[i].bytes >= bytes_ && idle[i].bytes <= 4 * bytes_ &&
          (best == idle.size() || idle[i].bytes < idle[best].bytes))
        best = i;
    if (best < idle.size()) {
      memory_ = idle[best].memory;
      bytes_ = idle[best].bytes;
      idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(best));
      return;
    }
    // A block that is too small gives its place to the new one, or calls that grow would keep one of every size.
    for (size_t i = 0; i < idle.size(); i++)
      if (idle[i].bytes < bytes_ && (best == idle.size() || idle[i].bytes > idle[best].bytes)) best = i;
    if (best < idle.size()) {
      std::free(idle[best].memory);
      idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(best));
    }
  }
  memory_ = std::aligned_alloc(4096, bytes_);
  if (!memory_) throw std::bad_alloc();
}

Scratch::~Scratch() {
  std::lock_guard<std::mutex> lock(pool().mutex);
  pool().idle.push_back({memory_, bytes_});
}

size_t empty_cache() {
  std::lock_guard<std::mutex> lock(pool().mutex);
  size_t freed = 0;
  for (Block b : pool().idle) {
    std::free(b.memory);
    freed += b.bytes;
  }
  pool().idle.clear();
  return freed;
}

}  // namespace dlops::cpu
