// The two numbers per sample that a plain step does not need: the factor of guidance rescale (Lin et al. 2023, "Common
// Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4) and the threshold of dynamic thresholding
// (Saharia et al. 2022, "Imagen", section 2.3). One block per sample; the sample is read again for every pass, from L2.
#pragma once
#include "../cuda/reduce.h"
#include "cuda.cuh"

namespace dlops::diffusion {

constexpr int kReduceThreads = 512;  // more would leave too few registers for float64
constexpr int kBins = 2048;          // a histogram of 11 bits: three passes for the 32 of a float

// f(values, chunk, left) for this thread's chunks of one sample: V values of x and of the guided output m and of cond.
template <class T, class F>
DLOPS_DEVICE void for_chunks(const StepReduceParams& p, int64_t sample, bool wide, F f) {
  constexpr int V = kVec<T>;
  const int64_t base = sample * p.elements;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * V; i < p.elements;
       i += static_cast<int64_t>(blockDim.x) * V) {
    const int64_t left = p.elements - i;
    float x[V], cond[V], m[V];
    unpack<T>(load(static_cast<const T*>(p.sample) + base + i, left, wide), x);
    unpack<T>(load(static_cast<const T*>(p.model) + base + i, left, wide), cond);
    if (p.uncond) unpack<T>(load(static_cast<const T*>(p.uncond) + base + i, left, wide), m);
#pragma unroll
    for (int j = 0; j < V; j++) m[j] = p.uncond ? guide(p.guidance, cond[j], m[j]) : cond[j];
    f(x, cond, m, left);
  }
}

// std(cond) / std(m), unbiased, in float64: so many values are summed that the order would show in float32.
template <class T>
DLOPS_DEVICE double deviation_ratio(const StepReduceParams& p, int64_t sample, bool wide) {
  DLOPS_SHARED(Moments<double>, scratch, [32]);
  Moments<double> conditional{}, guided{};
  for_chunks<T>(p, sample, wide, [&](const auto&, const auto& cond, const auto& m, int64_t left) {
    conditional.add(cond, left);
    guided.add(m, left);
  });
  conditional = block_reduce(conditional, scratch);
  guided = block_reduce(guided, scratch);
  const double n = static_cast<double>(p.elements - 1);  // one element: 0/0, as torch.std
  return sqrt(conditional.m2 / n) / sqrt(guided.m2 / n);
}

// The bin that holds the element of rank `rank` (from 0): every thread gets the bin, and rank counted from its start.
// Each thread has kBins / kReduceThreads bins; counts are below 2^32.
DLOPS_DEVICE uint32_t find_bin(const uint32_t* histogram, uint32_t& rank) {
  DLOPS_SHARED(uint32_t, warp_total, [32]);
  DLOPS_SHARED(uint32_t, found, [2]);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kOwn = kBins / kReduceThreads;
  const uint32_t* own = histogram + kOwn * threadIdx.x;
  uint32_t mine = 0;
#pragma unroll
  for (int b = 0; b < kOwn; b++) mine += own[b];
  uint32_t sum = mine;  // inclusive scan over the warp
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t below = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == 31) warp_total[warp] = sum;
  __syncthreads();
  uint32_t start = sum - mine;
  for (int w = 0; w < warp; w++) start += warp_total[w];
  if (rank >= start && rank - start < mine) {  // true in one thread
    uint32_t left = rank - start, b = 0;
    while (left >= own[b]) left -= own[b++];
    found[0] = kOwn * threadIdx.x + b;
    found[1] = left;
  }
  __syncthreads();
  rank = found[1];
  return found[0];
}

// |x0| as bits: of non-negative floats, which order as integers. The sign bit is clear, NaN is above infinity.
DLOPS_DEVICE uint32_t magnitude_bits(const float* k, float factor, float x, float m) {
  return __float_as_uint(denoised(k, x, __fmul_rn(m, factor))) & 0x7fffffffu;
}

// quantile(|x0|, ratio) by linear interpolation, as torch.quantile: NaN if any element is. Radix select: a histogram of
// the top 11 bits finds the bin of the wanted rank, then the next 11 bits of that bin's elements, then the last 10.
template <class T>
DLOPS_DEVICE float magnitude_quantile(const StepReduceParams& p, int64_t sample, const float* k, float factor,
                                      bool wide) {
  constexpr int kShift[3] = {21, 10, 0}, kBits[3] = {11, 11, 10};
  DLOPS_SHARED(uint32_t, histogram, [kBins]);
  DLOPS_SHARED(uint32_t, extreme, [2]);  // the least element above the wanted one; the greatest of all
  const double position = static_cast<double>(p.threshold_ratio) * static_cast<double>(p.elements - 1);
  const uint32_t below = static_cast<uint32_t>(position);
  uint32_t rank = below, value = 0, known = 0, same = 0;
  for (int pass = 0; pass < 3; pass++) {
    const int shift = pass == 0 ? kShift[0] : pass == 1 ? kShift[1] : kShift[2];
    const uint32_t mask = (1u << (pass == 2 ? kBits[2] : kBits[0])) - 1;
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kReduceThreads) histogram[b] = 0;
    __syncthreads();
    for_chunks<T>(p, sample, wide, [&](const auto& x, const auto&, const auto& m, int64_t left) {
#pragma unroll
      for (int j = 0; j < kVec<T>; j++) {
        const uint32_t bits = magnitude_bits(k, factor, x[j], m[j]);
        if (j < left && (bits & known) == value) atomicAdd(&histogram[bits >> shift & mask], 1u);
      }
    });
    __syncthreads();
    const uint32_t bin = find_bin(histogram, rank);
    same = histogram[bin];
    value |= bin << shift;
    known |= mask << shift;
    __syncthreads();  // all have read the histogram
  }
  if (threadIdx.x == 0) extreme[0] = 0xffffffffu, extreme[1] = 0;
  __syncthreads();
  uint32_t above = 0xffffffffu, greatest = 0;
  for_chunks<T>(p, sample, wide, [&](const auto& x, const auto&, const auto& m, int64_t left) {
#pragma unroll
    for (int j = 0; j < kVec<T>; j++) {
      const uint32_t bits = j < left ? magnitude_bits(k, factor, x[j], m[j]) : 0;
      if (bits > value && bits < above) above = bits;
      if (bits > greatest) greatest = bits;
    }
  });
  atomicMin(&extreme[0], above);
  atomicMax(&extreme[1], greatest);
  __syncthreads();
  above = extreme[0], greatest = extreme[1];  // the next sample's barriers part this from its writes
  if (greatest > 0x7f800000u) return __uint_as_float(greatest);
  const float low = __uint_as_float(value), high = rank + 1 < same ? low : __uint_as_float(above);
  const double fraction = position - static_cast<double>(below);
  return fraction == 0 ? low : __fmaf_rn(static_cast<float>(fraction), __fsub_rn(high, low), low);
}

constexpr KernelInfo kStepReduce =
    DLOPS_CUDA_KERNEL("diffusion_reduce", "diffusion", "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16",
                      "1 sample", "step_reduce", 0);
template <class T>
__global__ void __launch_bounds__(kReduceThreads, 1) step_reduce(const StepReduceParams p, const bool wide) {
  for (int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
    const float* k = p.rows.table + row_of(p.rows, n) * kStepColumns;
    float factor = 1.f, threshold = 0.f;
    if (p.rescale > 0.f) {
      const double ratio = deviation_ratio<T>(p, n, wide);
      factor = static_cast<float>(__dadd_rn(__dmul_rn(p.rescale, ratio), 1.0 - p.rescale));
    }
    if (p.threshold_ratio > 0.f) {
      const float q = magnitude_quantile<T>(p, n, k, factor, wide);
      threshold = q < 1.f ? 1.f : q > p.threshold_max ? p.threshold_max : q;
    }
    SIMT_TRACE("factor", factor);
    SIMT_TRACE("threshold", threshold);
    if (threadIdx.x == 0) {
      p.scale[2 * n] = factor;
      p.scale[2 * n + 1] = threshold;
    }
  }
}

}  // namespace dlops::diffusion
