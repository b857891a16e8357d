// A weight gradient is a sum over all pixels of the batch. It is cut into parts, a float32 result for each in the workspace,
// and a second kernel adds them in their order: how many there are depends on the shape alone, so the bits never change.
#pragma once
#include "geometry.cuh"

namespace dlops::conv {

struct Parts { int64_t count, size; };  // size: pixels (or rows) of a part; the last may have fewer

// tiles: blocks that work on one part. Enough parts that 132 processors have 4 blocks each, but none much smaller than `least`,
// and none that sums more than kLongest pixels in a row; sizes are multiples of `step`.
constexpr int64_t kLongest = 16384;
inline Parts parts_of(int64_t pixels, int64_t tiles, int64_t least, int64_t step) {
  const int64_t busy = ceil_div(528, tiles), accurate = ceil_div(pixels, kLongest),
                wanted = busy > accurate ? busy : accurate, most = ceil_div(pixels, least),
                count = wanted < most ? wanted : most;
  const int64_t size = ceil_div(ceil_div(pixels, count), step) * step;
  return {ceil_div(pixels, size), size};
}

constexpr KernelInfo kSumParts =
    DLOPS_CONV_CUDA_KERNEL("conv_weight", "shared", "1 element", "conv_sum_parts", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    conv_sum_parts(const float* parts, int64_t part_count, int64_t elements, void* out) {
  constexpr int kTogether = 16;  // sums of sums lose fewer digits
  for (int64_t at = flat_thread(); at < elements; at += flat_threads()) {
    float sum = 0.f;
    for (int64_t first = 0; first < part_count; first += kTogether) {
      const int64_t end = first + kTogether < part_count ? first + kTogether : part_count;
      float some = 0.f;
      for (int64_t part = first; part < end; part++) some += parts[part * elements + at];
      sum += some;
    }
    static_cast<T*>(out)[at] = static_cast<T>(sum);
  }
}

template <class T>
int sum_parts(const ConvWeightParams& p, int64_t part_count, cudaStream_t stream) {
  const int64_t elements = p.filters * p.group_channels() * p.taps();
  return launch(conv_sum_parts<T>, {flat_grid(elements), dim3(kRowThreads), 0, stream}, p.workspace,
                part_count, elements, p.dw);
}

}  // namespace dlops::conv
