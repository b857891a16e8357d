// A cooperative context switch: one stack per fiber, switched by 20 lines of assembly (fiber.S; x86-64 and AArch64), about
// 3 ns each way. Elsewhere, or with DLOPS_SIMT_UCONTEXT, the C library's ucontext does it, about 50 times slower.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(DLOPS_SIMT_UCONTEXT)
#define DLOPS_SIMT_UCONTEXT
#endif
#if defined(DLOPS_SIMT_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" {
// Saves the callee-saved registers on the current stack and the stack pointer in *from, and resumes `to` the same way.
void dlops_simt_switch(void** from, void* to);
void dlops_simt_entry();
// Where a new fiber begins; the scheduler supplies it. Never returns.
void dlops_simt_fiber_main();
}

namespace dlops::simt {

struct Fiber {
  char* stack = nullptr;  // lowest usable byte
  size_t size = 0;
#if defined(DLOPS_SIMT_UCONTEXT)
  ucontext_t context;

  void prepare() {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, dlops_simt_fiber_main, 0);
  }
#else
  void* sp = nullptr;  // the registers lie on the stack

  void prepare() {
#if defined(__x86_64__)
    constexpr int kRegisters = 6, kEntry = 6;  // rbp rbx r12 r13 r14 r15, then the address to go to
#else
    constexpr int kRegisters = 19, kEntry = 11;  // x19-x29, x30 (the address), d8-d15
#endif
    auto top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15);
    auto frame = reinterpret_cast<void**>(top) - (kRegisters + 1);
    for (int i = 0; i <= kRegisters; i++) frame[i] = nullptr;
    frame[kEntry] = reinterpret_cast<void*>(&dlops_simt_entry);
    sp = frame;
  }
#endif
};

// The address sanitizer must be told of every switch.
inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.stack, to.size);
#endif
#if defined(DLOPS_SIMT_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  dlops_simt_switch(&from.sp, to.sp);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

}  // namespace dlops::simt
