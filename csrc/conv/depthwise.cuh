// Depthwise convolution: one channel of x per group (and group_filters of y). Nothing is shared between channels, so that it
// waits for memory: an element of y moves two elements and costs `taps` products. An H200 moves 4.8 TB/s and multiplies
// 30 T times a second: 25 products in the time of 4 bytes (16-bit types), 50 in that of 8 (float32). Up to 5x5, and 7x7 in
// float32, the bound is the time of a copy; 7x7 in the 16-bit types is bound by the products, at half of that.
//
// What a kernel has to see to is that x comes from memory once and passes the L1 cache (128 bytes per cycle of a processor,
// six times its share of the memory's) few times. Hence sliding windows: a thread has several outputs along an axis, and a
// number that it loads serves all of them whose taps see it.
//
//   depthwise_last.cuh      channels_last, stride 1 along x: 4 channels x 8 outputs along x
//   depthwise_rows.cuh      NCHW, the usual windows along x: 16 bytes of a row at a time
//   depthwise_columns.cuh   NCHW, stride 1 along y: 8 outputs along y, neighbours along x
//   here                    anything, one element at a time; the data pass with a stride
//
// The data pass with stride 1 is the forward pass of the mirrored problem: y becomes x, taps turn round.
#pragma once
#include "epilogue.cuh"
#include "geometry.cuh"

namespace dlops::conv {

struct DepthwiseParams : ConvProblem {
  const void* x;
  const float* weights;  // [taps, filters]
  ConvEpilogue epilogue;
  void* y;
};

constexpr KernelInfo kDepthwiseWeights =
    DLOPS_CONV_CUDA_KERNEL("conv", "depthwise", "1 element", "conv_depthwise_weights", 0);
// [filters, taps] to [taps, filters] in float32. turned: the last tap first.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    conv_depthwise_weights(const void* w, int64_t filters, int64_t taps, bool turned, float* out) {
  for (int64_t at = flat_thread(); at < filters * taps; at += flat_threads()) {
    const int64_t tap = at / filters, from = turned ? taps - 1 - tap : tap;
    out[at] = static_cast<float>(static_cast<const T*>(w)[at % filters * taps + from]);
  }
}

constexpr KernelInfo kDepthwiseAny =
    DLOPS_CONV_CUDA_KERNEL("conv", "depthwise", "1 element", "conv_depthwise_any", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads, 8)
    conv_depthwise_any(const __grid_constant__ DepthwiseParams p) {
  const Strides in = strides_of(p.channels_last, p.channels, p.in_pixels());
  const int64_t count = p.batch * p.filters * p.out_pixels();
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const Element y = element_of(at, p.channels_last, p.filters, p.out_pixels());
    const Pixel q = pixel_of(y.pixel, p.out);
    const T* x =
        static_cast<const T*>(p.x) + y.sample * in.sample + y.channel / p.group_filters() * in.channel;
    const float* w = p.weights + y.channel;
    float sum = 0.f;
    for (int z = 0; z < p.kernel[0]; z++)
      for (int row = 0; row < p.kernel[1]; row++) {
        const int iz = seen_by(p, 0, q.z, z), iy = seen_by(p, 1, q.y, row);
        const int64_t line = (static_cast<int64_t>(iz) * p.in[1] + iy) * p.in[2];
        for (int k = 0; k < p.kernel[2]; k++, w += p.filters) {
          const int ix = seen_by(p, 2, q.x, k);
          if ((iz | iy | ix) >= 0) sum = fmaf(static_cast<float>(x[(line + ix) * in.pixel]), *w, sum);
        }
      }
    finish<T>(p.epilogue, p.y, at, y.channel, sum);
  }
}

// The data pass of any problem: the outputs that see an element of x, and the filters of its group.
constexpr KernelInfo kDepthwiseGather =
    DLOPS_CONV_CUDA_KERNEL("conv_data", "depthwise", "1 element", "conv_depthwise_gather", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    conv_depthwise_gather(const __grid_constant__ DepthwiseParams p) {
  const Strides out = strides_of(p.channels_last, p.filters, p.out_pixels());
  const int64_t count = p.batch * p.channels * p.in_pixels();
  for (int64_t at = flat_thread(); at < count; at += flat_threads()) {
    const Element x = element_of(at, p.channels_last, p.channels, p.in_pixels());
    const Pixel i = pixel_of(x.pixel, p.in);
    const int64_t first = x.channel * p.group_filters();
    const T* dy = static_cast<const T*>(p.x) + x.sample * out.sample + first * out.channel;
    const float* w = p.weights + first;
    float sum = 0.f;
    for (int z = 0; z < p.kernel[0]; z++)
      for (int row = 0; row < p.kernel[1]; row++) {
        const int qz = sees(p, 0, i.z, z), qy = sees(p, 1, i.y, row);
        const int64_t line = (static_cast<int64_t>(qz) * p.out[1] + qy) * p.out[2];
        for (int k = 0; k < p.kernel[2]; k++, w += p.filters) {
          const int qx = sees(p, 2, i.x, k);
          if ((qz | qy | qx) < 0) continue;
          for (int64_t o = 0; o < p.group_filters(); o++)
            sum = fmaf(static_cast<float>(dy[(line + qx) * out.pixel + o * out.channel]), w[o], sum);
        }
      }
    finish<T>(p.epilogue, p.y, at, x.channel, sum);
  }
}

// ---- the host's side. Each takes the problem if it can: kNotMine otherwise ----

constexpr int kNotMine = -1;
constexpr int kUnaligned =
    -2;  // it could, but for the address of a tensor: the general kernel has the same order of sums
int depthwise_last(const DepthwiseParams&, cudaStream_t);     // launch_depthwise_last.cu
int depthwise_rows(const DepthwiseParams&, cudaStream_t);     // launch_depthwise_rows.cu
int depthwise_columns(const DepthwiseParams&, cudaStream_t);  // launch_depthwise_columns.cu

}  // namespace dlops::conv
