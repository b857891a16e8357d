#include "parallel.h"

#include <exception>
#include <mutex>

namespace dlops::cpu {
namespace {

std::mutex& first() {
  static std::mutex* m = new std::mutex;  // never destroyed: kernels may run while the process exits
  return *m;
}

}  // namespace

FirstError::~FirstError() { delete static_cast<std::exception_ptr*>(error_); }

void FirstError::run(void (*f)(const void*, int64_t), const void* context, int64_t i) noexcept {
  try {
    f(context, i);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(first());
    if (!error_) error_ = new std::exception_ptr(std::current_exception());
  }
}

void FirstError::rethrow() {
  if (error_) std::rethrow_exception(*static_cast<std::exception_ptr*>(error_));
}

}  // namespace dlops::cpu
