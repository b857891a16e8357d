#include "depthwise.cuh"
#include "launch_parts.h"

namespace dlops::conv {

static const char* refuses(const ConvProblem& p) {
  if (p.group_channels() != 1) return "is for one channel per group";
  return refuses_counts(p);
}
const char* depthwise_forward_refuses(const ConvProblem& p) { return refuses(p); }
const char* depthwise_data_refuses(const ConvProblem& p) { return refuses(p); }
int64_t depthwise_forward_workspace(const ConvProblem& p) { return p.filters * p.taps(); }
int64_t depthwise_data_workspace(const ConvProblem& p) { return p.filters * p.taps(); }

template <class T>
static int prepare(const DepthwiseParams& p, const void* w, bool turned, float* weights,
                   cudaStream_t stream) {
  return launch(conv_depthwise_weights<T>, {flat_grid(p.filters * p.taps()), dim3(kRowThreads), 0, stream}, w,
                p.filters, p.taps(), turned, weights);
}

template <class T>
static int forward(const DepthwiseParams& p, cudaStream_t stream) {
  int error = depthwise_last(p, stream);
  if (error == kNotMine) error = depthwise_rows(p, stream);
  if (error == kNotMine) error = depthwise_columns(p, stream);
  if (error != kNotMine && error != kUnaligned) return error;
  const dim3 grid = flat_grid(p.batch * p.filters * p.out_pixels());
  return launch(conv_depthwise_any<T>, {grid, dim3(kRowThreads), 0, stream}, p);
}

int depthwise_forward(const ConvForwardParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    const DepthwiseParams d{p, p.x, p.workspace, p.epilogue, p.y};
    const int error = prepare<T>(d, p.w, false, p.workspace, s);
    return error != cudaSuccess ? error : forward<T>(d, s);
  });
}

// With one filter per channel and stride 1: y is x, the taps turn round, and what was beyond the edge moves to the other side.
static bool mirrors(const ConvProblem& p) {
  return p.filters == p.channels && p.stride[0] * p.stride[1] * p.stride[2] == 1;
}
static void mirror(ConvProblem& p) {
  for (int i = 0; i < 3; i++) {
    const int64_t size = p.in[i];
    p.in[i] = p.out[i], p.out[i] = size;
    p.padding[i] = p.dilation[i] * (p.kernel[i] - 1) - p.padding[i];
  }
}

int depthwise_data(const ConvDataParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    DepthwiseParams d{p, p.dy, p.workspace, p.epilogue, p.dx};
    const int error = prepare<T>(d, p.w, mirrors(p), p.workspace, s);
    if (error != cudaSuccess) return error;
    if (!mirrors(p))
      return static_cast<int>(
          launch(conv_depthwise_gather<T>,
                 {flat_grid(p.batch * p.channels * p.in_pixels()), dim3(kRowThreads), 0, s}, d));
    mirror(d);
    return forward<T>(d, s);
  });
}

}  // namespace dlops::conv
