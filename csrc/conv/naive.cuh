// The rung `naive`: the definition, one thread per element of the result. Each product reads both of its factors from memory
// (caches help), and a warp's threads read what lies together only where the layout happens to bring it.
#pragma once
#include "epilogue.cuh"
#include "geometry.cuh"

namespace dlops::conv {

template <class T>
DLOPS_DEVICE float value(const void* p, int64_t i) {
  return static_cast<float>(static_cast<const T*>(p)[i]);
}

// y[n, o, q] = sum over taps and the group's channels. A part per tap: sums of sums lose fewer digits.
constexpr KernelInfo kNaiveForward =
    DLOPS_CONV_CUDA_KERNEL("conv", "naive", "1 element", "conv_naive_forward", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    conv_naive_forward(const __grid_constant__ ConvForwardParams p) {
  const Strides in = strides_of(p.channels_last, p.channels, p.in_pixels());
  const int64_t count = p.batch * p.filters * p.out_pixels(), taps = p.taps(), per = p.group_channels();
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const Element y = element_of(at, p.channels_last, p.filters, p.out_pixels());
    const int64_t first = y.channel / p.group_filters() * per;
    const Pixel q = pixel_of(y.pixel, p.out);
    float sum = 0.f;
    for (int k = 0; k < taps; k++) {
      const int pixel = pixel_seen_by(p, q, pixel_of(k, p.kernel));
      if (pixel < 0) continue;
      const int64_t x = y.sample * in.sample + first * in.channel + pixel * in.pixel,
                    w = y.channel * per * taps + k;
      float part = 0.f;
      for (int64_t c = 0; c < per; c++)
        part = fmaf(value<T>(p.x, x + c * in.channel), value<T>(p.w, w + c * taps), part);
      sum += part;
    }
    finish<T>(p.epilogue, p.y, at, y.channel, sum);
  }
}

// dx[n, c, i] = sum over the outputs that see i, and the group's filters.
constexpr KernelInfo kNaiveData =
    DLOPS_CONV_CUDA_KERNEL("conv_data", "naive", "1 element", "conv_naive_data", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads) conv_naive_data(const __grid_constant__ ConvDataParams p) {
  const Strides out = strides_of(p.channels_last, p.filters, p.out_pixels());
  const int64_t count = p.batch * p.channels * p.in_pixels(), taps = p.taps(), per = p.group_channels();
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const Element x = element_of(at, p.channels_last, p.channels, p.in_pixels());
    const int64_t first = x.channel / per * p.group_filters();
    const Pixel i = pixel_of(x.pixel, p.in);
    float sum = 0.f;
    for (int k = 0; k < taps; k++) {
      const int pixel = pixel_that_sees(p, i, pixel_of(k, p.kernel));
      if (pixel < 0) continue;
      const int64_t dy = x.sample * out.sample + first * out.channel + pixel * out.pixel;
      const int64_t w = (first * per + x.channel % per) * taps + k;
      float part = 0.f;
      for (int64_t o = 0; o < p.group_filters(); o++)
        part = fmaf(value<T>(p.dy, dy + o * out.channel), value<T>(p.w, w + o * per * taps), part);
      sum += part;
    }
    finish<T>(p.epilogue, p.dx, at, x.channel, sum);
  }
}

// dw[o, c, k] = sum over samples and pixels. A part per row of an image.
constexpr KernelInfo kNaiveWeight =
    DLOPS_CONV_CUDA_KERNEL("conv_weight", "naive", "1 element", "conv_naive_weight", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads) conv_naive_weight(const __grid_constant__ ConvWeightParams p) {
  const Strides in = strides_of(p.channels_last, p.channels, p.in_pixels());
  const Strides out = strides_of(p.channels_last, p.filters, p.out_pixels());
  const int64_t taps = p.taps(), per = p.group_channels(), rows = p.batch * p.out[0] * p.out[1];
  const int width = static_cast<int>(p.out[2]);
  for (int64_t at = flat_thread(); at < p.filters * per * taps; at += flat_threads()) {
    const int64_t filter = at / taps / per, channel = filter / p.group_filters() * per + at / taps % per;
    const Pixel k = pixel_of(static_cast<int>(at % taps), p.kernel);
    float sum = 0.f;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t sample = row / (p.out[0] * p.out[1]);
      const int first = static_cast<int>(row % (p.out[0] * p.out[1])) * width;
      const int64_t x = sample * in.sample + channel * in.channel,
                    dy = sample * out.sample + filter * out.channel;
      float part = 0.f;
      for (int q = first; q < first + width; q++) {
        const int i = pixel_seen_by(p, pixel_of(q, p.out), k);
        if (i >= 0) part = fmaf(value<T>(p.x, x + i * in.pixel), value<T>(p.dy, dy + q * out.pixel), part);
      }
      sum += part;
    }
    static_cast<T*>(p.dw)[at] = static_cast<T>(sum);
  }
}

}  // namespace dlops::conv
