// Diffusion sampling on the CPU: one pass over the latent per solver step. See README.md of this folder.
// Compiled once per instruction-set level; DLOPS_TABLE is the level's table, e.g. diffusion_avx2.
#include "cpu.h"

#include "../cpu/lanes.h"
#include "../cpu/parallel.h"
#include "reduce.h"
#include "span.h"

namespace dlops {
namespace {

// ---- the fused rung: 4 vectors at a time, so that the uniform branches below are paid once per 4 kLanes elements and
// one Philox call (4 words per counter) feeds one block ----

// The block's normals, from the tensor or from the seeds.
template <class T>
DLOPS_INLINE void noise_block(const void* noise, const Lanes::Key& key, int32_t step, const Span& s,
                              int64_t i, Vec (&z)[4]) {
  if (noise) {
    load4(at<T>(noise, s, i), s.end - i, z);
  } else {
    normals(static_cast<uint64_t>(i / 4), step, key, z);
  }
}

// The sample's key; any where there are no seeds.
Lanes::Key key_of(const int64_t* seeds, const Span& s) {
  return Lanes::Key(seeds ? static_cast<uint64_t>(seeds[s.sample]) : 0);
}

template <class T>
void step_span(const StepParams& p, const Span& s) {
  const int64_t row = row_of(p.rows, s.sample);
  const float* k = p.rows.table + row * kStepColumns;
  const float factor = p.scale ? p.scale[2 * s.sample] : 1.f,
              threshold = p.scale ? p.scale[2 * s.sample + 1] : 0.f;
  const Vec limit = set1(threshold != 0.f ? threshold : k[kClip]);
  const bool noisy = (p.noise || p.seeds) && (k[kD] != 0.f || k[kPn] != 0.f);
  const Lanes::Key key = key_of(p.seeds, s);
  for (int64_t i = s.begin; i < s.end; i += kBlock) {
    const int64_t left = s.end - i;
    Vec x[4], m[4], x0[4], out[4], z[4];
    load4(at<T>(p.sample, s, i), left, x);
    load4(at<T>(p.model, s, i), left, m);
    if (p.uncond) {
      load4(at<T>(p.uncond, s, i), left, z);
      each4([&](int j) { m[j] = fma(set1(p.guidance), m[j] - z[j], z[j]); });
    }
    if (p.scale) each4([&](int j) { m[j] = m[j] * set1(factor); });
    each4([&](int j) { x0[j] = fma(set1(k[kPm]), m[j], set1(k[kPx]) * x[j]); });
    if (noisy) {
      noise_block<T>(p.noise, key, static_cast<int32_t>(row), s, i, z);
      if (k[kPn] != 0.f) each4([&](int j) { x0[j] = fma(set1(k[kPn]), z[j], x0[j]); });
    }
    each4([&](int j) { x0[j] = min(limit, max(-limit, x0[j])); });  // the limits first: NaN passes through
    if (threshold != 0.f) each4([&](int j) { x0[j] = x0[j] / limit; });
    each4([&](int j) { out[j] = set1(k[kA]) * x[j]; });
    if (k[kB] != 0.f) each4([&](int j) { out[j] = fma(set1(k[kB]), m[j], out[j]); });
    if (k[kC] != 0.f) each4([&](int j) { out[j] = fma(set1(k[kC]), x0[j], out[j]); });
    for (int h = 0; h < 3; h++) {
      if (!p.history[h] || k[kH1 + h] == 0.f) continue;
      load4(at<T>(p.history[h], s, i), left, m);
      each4([&](int j) { out[j] = fma(set1(k[kH1 + h]), m[j], out[j]); });
    }
    if (noisy) each4([&](int j) { out[j] = fma(set1(k[kD]), z[j], out[j]); });
    store4(at<T>(p.prev, s, i), left, out);
    if (p.x0) store4(at<T>(p.x0, s, i), left, x0);
  }
}

constexpr KernelInfo kStep = DLOPS_CPU_KERNEL("diffusion_step", "diffusion", "fused", "f32 f16 bf16",
                                              "4 x lanes elements", "step_span");
void step(const StepParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    for_spans(p.threads, p.samples, p.elements,
              [&](Span s) { step_span<std::remove_pointer_t<decltype(t)>>(p, s); });
  });
}

template <class T>
void add_noise_span(const AddNoiseParams& p, const Span& s) {
  const float* k = p.rows.table + 2 * row_of(p.rows, s.sample);
  const Lanes::Key key = key_of(p.seeds, s);
  for (int64_t i = s.begin; i < s.end; i += kBlock) {
    Vec x[4], z[4];
    load4(at<T>(p.sample, s, i), s.end - i, x);
    noise_block<T>(p.noise, key, p.step, s, i, z);
    each4([&](int j) { x[j] = fma(set1(k[1]), z[j], set1(k[0]) * x[j]); });
    store4(at<T>(p.out, s, i), s.end - i, x);
  }
}

constexpr KernelInfo kAddNoise = DLOPS_CPU_KERNEL("add_noise", "diffusion", "fused", "f32 f16 bf16",
                                                  "4 x lanes elements", "add_noise_span");
void add_noise(const AddNoiseParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    for_spans(p.threads, p.samples, p.elements,
              [&](Span s) { add_noise_span<std::remove_pointer_t<decltype(t)>>(p, s); });
  });
}

template <class T>
void randn_span(const RandnParams& p, const Span& s) {
  const Lanes::Key key = key_of(p.seeds, s);
  for (int64_t i = s.begin; i < s.end; i += kBlock) {
    Vec z[4];
    normals(static_cast<uint64_t>(i / 4), p.step, key, z);
    store4(at<T>(p.out, s, i), s.end - i, z);
  }
}

constexpr KernelInfo kRandn =
    DLOPS_CPU_KERNEL("randn", "diffusion", "fused", "f32 f16 bf16", "4 x lanes elements", "randn_span");
void randn(const RandnParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    for_spans(p.threads, p.samples, p.elements,
              [&](Span s) { randn_span<std::remove_pointer_t<decltype(t)>>(p, s); });
  });
}

// ---- the naive rung: the formula, one element at a time; every element pays for a whole Philox call ----

float normal1(const int64_t* seeds, int32_t step, int64_t sample, int64_t i) {
  uint64_t g = static_cast<uint64_t>(i / 4);
  float n[4];
  philox::normal4<philox::Scalar>(static_cast<uint32_t>(g), static_cast<uint32_t>(g >> 32), step,
                                  static_cast<uint64_t>(seeds[sample]), n);
  return n[i % 4];
}

template <class T>
void step_naive_span(const StepParams& p, const Span& s) {
  for (int64_t i = s.begin; i < s.end; i++) {
    const int64_t row = row_of(p.rows, s.sample);
    const float* k = p.rows.table + row * kStepColumns;
    float threshold = p.scale ? p.scale[2 * s.sample + 1] : 0.f,
          limit = threshold != 0.f ? threshold : k[kClip];
    float x = load1(at<T>(p.sample, s, i)), m = load1(at<T>(p.model, s, i)), z = 0.f;
    if (p.uncond) {
      float u = load1(at<T>(p.uncond, s, i));
      m = __builtin_fmaf(p.guidance, m - u, u);
    }
    if (p.scale) m = m * p.scale[2 * s.sample];
    bool noisy = (p.noise || p.seeds) && (k[kD] != 0.f || k[kPn] != 0.f);
    if (noisy)
      z = p.noise ? load1(at<T>(p.noise, s, i)) : normal1(p.seeds, static_cast<int32_t>(row), s.sample, i);
    float x0 = __builtin_fmaf(k[kPm], m, k[kPx] * x);
    if (noisy && k[kPn] != 0.f) x0 = __builtin_fmaf(k[kPn], z, x0);
    x0 = x0 < -limit ? -limit : x0 > limit ? limit : x0;
    if (threshold != 0.f) x0 = x0 / threshold;
    float out = k[kA] * x;
    if (k[kB] != 0.f) out = __builtin_fmaf(k[kB], m, out);
    if (k[kC] != 0.f) out = __builtin_fmaf(k[kC], x0, out);
    for (int h = 0; h < 3; h++)
      if (p.history[h] && k[kH1 + h] != 0.f)
        out = __builtin_fmaf(k[kH1 + h], load1(at<T>(p.history[h], s, i)), out);
    if (noisy) out = __builtin_fmaf(k[kD], z, out);
    store1(at<T>(p.prev, s, i), out);
    if (p.x0) store1(at<T>(p.x0, s, i), x0);
  }
}

constexpr KernelInfo kStepNaive =
    DLOPS_CPU_KERNEL("diffusion_step", "diffusion", "naive", "f32 f16 bf16", "1 element", "step_naive_span");
void step_naive(const StepParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    for_spans(p.threads, p.samples, p.elements,
              [&](Span s) { step_naive_span<std::remove_pointer_t<decltype(t)>>(p, s); });
  });
}

constexpr KernelInfo kRandnNaive =
    DLOPS_CPU_KERNEL("randn", "diffusion", "naive", "f32 f16 bf16", "1 element", "randn_naive");
void randn_naive(const RandnParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    for_spans(p.threads, p.samples, p.elements, [&](Span s) {
      for (int64_t i = s.begin; i < s.end; i++)
        store1(at<T>(p.out, s, i), normal1(p.seeds, p.step, s.sample, i));
    });
  });
}

constexpr KernelInfo kReduce =
    DLOPS_CPU_KERNEL("diffusion_reduce", "diffusion", "fused", "f32 f16 bf16", "1 sample", "reduce_sample");
void step_reduce(const StepReduceParams& p) {
  with_dtype(p.dtype, [&](auto* t) {
    parallel_for(p.threads, p.samples,
                 [&](int64_t n) { reduce_sample<std::remove_pointer_t<decltype(t)>>(p, n); });
  });
}

constexpr KernelInfo kKernels[] = {kStep, kStepNaive, kReduce, kAddNoise, kRandn, kRandnNaive};

}  // namespace

extern const DiffusionCpu DLOPS_TABLE = {step,  step_naive,  step_reduce, add_noise,
                                         randn, randn_naive, kKernels,    6};

}  // namespace dlops
