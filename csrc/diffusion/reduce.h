// The two numbers per sample that a plain step does not need: the factor of guidance rescale (Lin et al. 2023, "Common
// Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4) and the threshold of dynamic thresholding
// (Saharia et al. 2022, "Imagen", section 2.3).
#pragma once
#include "../cpu/scratch.h"
#include "span.h"

namespace dlops {
namespace {

// Mean and squared deviations of a stream of vectors, two passes per L1-sized piece, merged by Chan et al. 1979.
struct Moments {
  double count = 0, mean = 0, m2 = 0;
  void merge(double n, double other_mean, double other_m2) {
    double delta = other_mean - mean, total = count + n;
    mean += delta * n / total;
    m2 += other_m2 + delta * delta * count * n / total;
    count = total;
  }
  double deviation() const {
    return __builtin_sqrt(m2 / (count - 1));
  }  // unbiased; NaN for one element, as torch.std
};

inline Moments moments(const float* v, int64_t n) {
  Moments all;
  constexpr int64_t kPiece = 1024;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    int64_t count = begin + kPiece < n ? kPiece : n - begin;
    double sum = 0, m2 = 0;
    for (int64_t i = 0; i < count; i++) sum += v[begin + i];
    double mean = sum / static_cast<double>(count);
    for (int64_t i = 0; i < count; i++) m2 += (v[begin + i] - mean) * (v[begin + i] - mean);
    all.merge(static_cast<double>(count), mean, m2);
  }
  return all;
}

// The k-th smallest (from 0) of n non-negative floats, whose bits order as integers: a histogram of 11 bits at a time
// narrows the candidates; the data is read three times and never moved.
inline float kth_smallest(const float* v, int64_t n, int64_t k) {
  constexpr int kShift[3] = {21, 10, 0}, kBits[3] = {11, 11, 10};
  uint32_t prefix = 0, known = 0;
  for (int pass = 0; pass < 3; pass++) {
    const int shift = kShift[pass];
    const uint32_t mask = (1u << kBits[pass]) - 1;
    int64_t count[2048] = {};
    for (int64_t i = 0; i < n; i++) {
      uint32_t b;
      memcpy(&b, v + i, 4);
      if ((b & known) == prefix) count[b >> shift & mask]++;
    }
    uint32_t digit = 0;
    while (k >= count[digit]) k -= count[digit++];
    prefix |= digit << shift;
    known |= mask << shift;
  }
  float f;
  memcpy(&f, &prefix, 4);
  return f;
}

// torch.quantile(v, q, interpolation="linear"); NaN if any element is.
inline float quantile(const float* v, int64_t n, float q) {
  for (int64_t i = 0; i < n; i++)
    if (v[i] != v[i]) return v[i];
  double rank = static_cast<double>(q) * static_cast<double>(n - 1);
  int64_t below = static_cast<int64_t>(rank);
  float low = kth_smallest(v, n, below);
  double fraction = rank - static_cast<double>(below);
  if (fraction == 0) return low;
  float high = kth_smallest(v, n, below + 1);
  return __builtin_fmaf(static_cast<float>(fraction), high - low, low);
}

template <class T>
void reduce_sample(const StepReduceParams& p, int64_t n) {
  const float* k = p.rows.table + row_of(p.rows, n) * kStepColumns;
  const Span s{n, n * p.elements, 0, p.elements};
  cpu::Scratch scratch(static_cast<size_t>(p.elements) * sizeof(float));
  float* v = scratch.floats();
  auto guided = [&](int64_t i) {
    float m = load1(at<T>(p.model, s, i));
    if (!p.uncond) return m;
    float u = load1(at<T>(p.uncond, s, i));
    return __builtin_fmaf(p.guidance, m - u, u);
  };
  float factor = 1.f, threshold = 0.f;
  if (p.rescale > 0.f) {
    for (int64_t i = 0; i < p.elements; i++) v[i] = load1(at<T>(p.model, s, i));
    double conditional = moments(v, p.elements).deviation();
    for (int64_t i = 0; i < p.elements; i++) v[i] = guided(i);
    double ratio = conditional / moments(v, p.elements).deviation();
    factor = static_cast<float>(p.rescale * ratio + (1.0 - p.rescale));
  }
  if (p.threshold_ratio > 0.f) {
    for (int64_t i = 0; i < p.elements; i++) {
      float x0 = __builtin_fmaf(k[kPm], guided(i) * factor, k[kPx] * load1(at<T>(p.sample, s, i)));
      v[i] = __builtin_fabsf(x0);
    }
    float q = quantile(v, p.elements, p.threshold_ratio);
    threshold = q < 1.f ? 1.f : q > p.threshold_max ? p.threshold_max : q;
  }
  p.scale[2 * n] = factor;
  p.scale[2 * n + 1] = threshold;
}

}  // namespace
}  // namespace dlops
