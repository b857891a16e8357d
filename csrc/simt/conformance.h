// The conformance cases: for each wrapper of cuda/ptx.h, mma.h, tma.h and grid_sync.h a small kernel whose output bytes
// tell every layout mistake from the right answer. The same source runs on a GPU and in the simt runner; what a GPU gave
// is kept in tests/simt/golden, and the runner must give the same bytes.
//
// Shared memory and registers are filled by raw position, so that a case holds no reading of the manual of its own.
#pragma once
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/launch.h"

namespace dlops::conformance {

using Bytes = std::vector<unsigned char>;

struct Case {
  std::string name;
  std::vector<std::string> wrappers;  // the functions that it confirms
  int architecture;                   // the oldest that runs it: 75, 80, 90
  std::function<Bytes()> run;         // throws std::runtime_error
};

// Every case, in a fixed order.
std::vector<Case> conformance_cases();

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
#if defined(__CUDACC__)
  throw std::runtime_error(cudaGetErrorString(error));
#else
  throw std::runtime_error("CUDA error " + std::to_string(static_cast<int>(error)));
#endif
}

// An array on the device.
template <class T>
class Buffer {
 public:
#if defined(__CUDACC__)
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    check(cudaMalloc(&data_, size_ * sizeof(T)));
    check(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  T* data() { return data_; }
  Bytes bytes() const {
    Bytes host(size_ * sizeof(T));
    check(cudaMemcpy(host.data(), data_, host.size(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
#else
  explicit Buffer(std::vector<T> values) : values_(std::move(values)) {}
  T* data() { return values_.data(); }
  Bytes bytes() const {
    Bytes host(values_.size() * sizeof(T));
    std::memcpy(host.data(), values_.data(), host.size());
    return host;
  }

 private:
  std::vector<T> values_;
#endif
 public:
  Buffer(const Buffer&) = delete;
};

// Runs the kernel, whose first argument is its output of `count` elements, and gives the output's bytes.
template <class T, class... P, class... A>
Bytes output_of(void (*kernel)(T*, P...), const Launch& l, size_t count, A&&... args) {
  Buffer<T> out(std::vector<T>(count, T(-1)));
  check(launch(kernel, l, out.data(), std::forward<A>(args)...));
#if defined(__CUDACC__)
  check(cudaDeviceSynchronize());
#endif
  return out.bytes();
}

// A small integer, exact in every 16-bit type, that looks random: -8 .. 8.
DLOPS_DEVICE int small(uint32_t position, uint32_t salt = 0) {
  uint32_t x = (position + 1) * 0x9e3779b1u ^ (salt + 1) * 0x85ebca77u;
  x = (x ^ (x >> 15)) * 0xc2b2ae3du;
  return static_cast<int>((x >> 8) % 17) - 8;
}

std::vector<Case> synchronisation_cases();
std::vector<Case> matrix_cases();
std::vector<Case> tensor_copy_cases();

}  // namespace dlops::conformance
