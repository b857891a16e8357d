// What the runner's own test programs share: checks that print one line each, launches that must succeed.
#pragma once
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/mma.h"
#include "../../csrc/cuda/tma.h"

inline int failures = 0;

inline void check(bool passed, const std::string& what) {
  std::printf("%s %s\n", passed ? "ok    " : "FAILED", what.c_str());
  failures += !passed;
}

template <class... P, class... A>
void run(void (*kernel)(P...), const dlops::Launch& l, A&&... arguments) {
  if (dlops::launch(kernel, l, std::forward<A>(arguments)...) != cudaSuccess)
    throw std::runtime_error("launch failed");
}

// That the launch ends with a finding whose message holds `part`.
template <class... P, class... A>
void check_finding(const std::string& what, const std::string& part, void (*kernel)(P...),
                   const dlops::Launch& l, A&&... arguments) {
  std::string message = "no finding";
  try {
    run(kernel, l, std::forward<A>(arguments)...);
  } catch (const std::runtime_error& e) {
    message = e.what();
  }
  check(message.find(part) != std::string::npos, what);
  if (message.find(part) == std::string::npos) std::printf("       %s\n", message.c_str());
}

// Element i of packed 16-bit elements.
template <class T>
void put(std::vector<uint32_t>& words, int i, int value) {
  const T element(static_cast<float>(value));
  std::memcpy(reinterpret_cast<char*>(words.data()) + 2 * i, &element, 2);
}
