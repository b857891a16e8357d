// What the address sanitizer must be told; nothing in other builds.
#pragma once
#include "fiber.h"
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace dlops::simt {

// The bounds of the stack that this OS thread runs on.
inline void describe_own_stack([[maybe_unused]] Fiber& f) {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* low;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &f.size);
  pthread_attr_destroy(&attributes);
  f.stack = static_cast<char*>(low);
#endif
}

}  // namespace dlops::simt
