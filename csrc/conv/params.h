// What the convolution kernels take. One struct describes the problem for every pass and every device; a pass adds its
// tensors.
//
// Sizes are those of the convolution y = x * w (a cross-correlation, as in torch), whatever the pass:
//
//   y[n, o, q] = sum_{c, k} w[o, c, k] x[n, g(o) C/G + c, q stride - padding + k dilation]        q, k in up to 3 dimensions
//
// with x read as 0 (or as padding_mode says) outside of its edges. The data pass is the adjoint in x: it makes dx of dy, and
// is what a transposed convolution computes. The weight pass is the adjoint in w.
#pragma once
#include <cstdint>

#include "../dtype.h"

namespace dlops {

enum class Activation : int32_t { none, relu, silu, gelu, tanh, sigmoid };  // gelu: the exact one, by erf
enum class PaddingMode : int32_t { zeros, reflect, replicate, circular };
constexpr int kPaddingModes = 4, kActivations = 6;

// The rungs. A family of devices has some of them for some passes.
enum class Algorithm : int32_t {
  naive,          // both: one element of the result at a time
  direct,         // CPU: register tiles over a padded channels-last image
  gemm,           // CPU: 1x1 kernels, stride 1
  winograd,       // 3x3 (2-D), stride 1: F(4x4, 3x3) on the CPU, F(2x2, 3x3) on CUDA
  winograd_f2,    // CPU: F(2x2, 3x3)
  depthwise,      // both: one channel per group
  grouped,        // CPU: a few channels per group
  shared,         // CUDA: tiles in shared memory, float32 cores
  implicit_gemm,  // CUDA: tensor cores, channels-last float16 and bfloat16
  count
};
constexpr int kAlgorithms = static_cast<int>(Algorithm::count);
constexpr const char* kAlgorithmNames[kAlgorithms] = {
    "naive", "direct", "gemm", "winograd", "winograd_f2", "depthwise", "grouped", "shared", "implicit_gemm"};

// Spatial arrays are [depth, height, width]; a 2-D convolution has depth 1, a 1-D one also height 1 (kernel 1, stride 1,
// padding 0, dilation 1 there).
struct ConvProblem {
  int64_t batch, channels, filters, groups;  // N, C, O, G: C and O of all groups together, multiples of G
  int64_t in[3], out[3], kernel[3], stride[3], dilation[3];
  int64_t padding
      [3];  // before the first element of x; how much follows the last is what `out` needs. May be negative
            // (rows of x that no tap sees) in problems that kernels make of others, never from a caller
  PaddingMode padding_mode;
  bool
      channels_last;  // x, y and residual are [N, D, H, W, C] in memory, else [N, C, D, H, W]; no gaps in either
  Dtype dtype;        // of x, w, y, bias and residual; sums are float32
  int threads;        // CPU

  constexpr int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  constexpr int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  constexpr int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  constexpr int64_t group_channels() const { return channels / groups; }
  constexpr int64_t group_filters() const { return filters / groups; }
};

// result = activation(convolution + bias + residual), rounded once.
struct ConvEpilogue {
  const void* bias;      // one value per channel of the result, or null
  const void* residual;  // of the result's shape and layout, or null
  Activation activation;
};

// w is [O, C/G, kd, kh, kw] without gaps. `packed` is what the algorithm's `pack` made of it (CPU; null where it packs
// nothing): it holds as long as w does not change, and where it is given w may be null.
struct ConvForwardParams : ConvProblem {
  const void *x, *w;
  const float* packed;
  ConvEpilogue epilogue;  // bias [O], residual like y
  void* y;
  float* workspace;  // CUDA
  Algorithm algorithm;
};

struct ConvDataParams : ConvProblem {  // padding_mode is zeros
  const void *dy, *w;
  const float* packed;
  ConvEpilogue epilogue;  // bias [C], residual like dx
  void* dx;
  float* workspace;  // CUDA
  Algorithm algorithm;
};

struct ConvWeightParams : ConvProblem {  // padding_mode is zeros
  const void *x, *dy;
  void* dw;          // like w
  float* workspace;  // CUDA
  Algorithm algorithm;
};

}  // namespace dlops
