// A program that runs test kernels: numerics against float64, one line per case. Exit code 0: all is right, 1: a result is
// wrong, 2: the runner has a finding, which is printed.
#pragma once
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.h"

inline bool all_right = true;

inline void expect(const std::string& what, double error, double bound) {  // a NaN is an error
  const bool right = error <= bound;
  std::printf("%-5s %s: error %.1e, at most %.0e\n", right ? "ok" : "WRONG", what.c_str(), error, bound);
  all_right &= right;
}

// The larger, where NaN is the largest.
inline double worse(double a, double b) { return a >= b ? a : b; }

template <class T>
std::vector<T> normals(size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(n);
  for (T& v : values) v = T(normal(generator));
  return values;
}

inline void must(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("launch failed");
}

inline int program(void (*cases)()) {
  try {
    cases();
  } catch (const std::exception& e) {
    std::printf("FINDING %s\n", e.what());
    return 2;
  }
  return all_right ? 0 : 1;
}
