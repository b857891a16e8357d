// What g++ -fsanitize=thread calls on every load and store. The race build links this in place of libtsan: the compiler's
// half of the thread sanitizer, with a runtime that knows CUDA's rules. Only the kernels are compiled so, never the runner.
#include <cstdint>

#include "checker.h"
#include "race.h"

namespace {

inline void access(const void* p, size_t bytes, bool write, const void* pc) {
  const dlops::simt::Thread* t = dlops::simt::self();
  if (!t) return;  // host code in the same file
  if (static_cast<size_t>(static_cast<const char*>(p) - t->fiber.stack) < t->fiber.size) return;  // a local
  dlops::simt::plain_access(p, bytes, write, pc);
}

}  // namespace

#define PC __builtin_return_address(0)
#define HOOK(name, bytes, write) \
  void name(const void* p) { access(p, bytes, write, PC); }
#define HOOKS(bytes)                                        \
  HOOK(__tsan_read##bytes, bytes, false)                    \
  HOOK(__tsan_write##bytes, bytes, true)                    \
  HOOK(__tsan_unaligned_read##bytes, bytes, false)          \
  HOOK(__tsan_unaligned_write##bytes, bytes, true)          \
  HOOK(__tsan_volatile_read##bytes, bytes, false)           \
  HOOK(__tsan_volatile_write##bytes, bytes, true)           \
  HOOK(__tsan_unaligned_volatile_read##bytes, bytes, false) \
  HOOK(__tsan_unaligned_volatile_write##bytes, bytes, true)

extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) void __tsan_read_range(const void* p, size_t bytes) {
  access(p, bytes, false, PC);
}
void __tsan_write_range(const void* p, size_t bytes) { access(p, bytes, true, PC); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
