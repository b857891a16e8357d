#include "launch_parts.h"
#include "winograd.cuh"

namespace dlops::conv {

static const char* refuses(const ConvProblem& p) {
  if (p.in[0] * p.out[0] * p.kernel[0] != 1 || p.padding[0] != 0 || p.kernel[1] != 3 || p.kernel[2] != 3)
    return "is for 2-D 3x3 kernels";
  if (p.stride[1] * p.stride[2] * p.dilation[1] * p.dilation[2] != 1) return "is for stride 1 and dilation 1";
  return refuses_counts(p);
}
const char* winograd_forward_refuses(const ConvProblem& p) { return refuses(p); }
const char* winograd_data_refuses(const ConvProblem& p) { return refuses(p); }

// y becomes x, filters become channels, taps turn round, and what was beyond the edge moves to the other side.
static ConvProblem mirror(const ConvProblem& p) {
  ConvProblem m = p;
  m.channels = p.filters, m.filters = p.channels;
  for (int i = 0; i < 3; i++)
    m.in[i] = p.out[i], m.out[i] = p.in[i], m.padding[i] = p.kernel[i] - 1 - p.padding[i];
  return m;
}

static int64_t workspace(const ConvProblem& p) {
  const WinogradShape s = winograd_shape(p);
  return p.groups * 16 * s.steps * kDepth * s.filter_tiles * kFilters;
}
int64_t winograd_forward_workspace(const ConvProblem& p) { return workspace(p); }
int64_t winograd_data_workspace(const ConvProblem& p) { return workspace(mirror(p)); }

template <class T>
static int run(const WinogradParams& p, const void* w, bool mirrored, float* transformed,
               cudaStream_t stream) {
  const int error =
      launch(conv_winograd_weights<T>, {flat_grid(workspace(p) / 16), dim3(kRowThreads), 0, stream}, p, w,
             mirrored, transformed);
  if (error != cudaSuccess) return error;
  const WinogradShape s = winograd_shape(p);
  const int64_t tiles = ceil_div(p.batch * ceil_div(p.out[1], 2) * ceil_div(p.out[2], 2), kTiles);
  const Launch l{task_grid(tiles * s.filter_tiles * p.groups), dim3(kWinogradThreads), 0, stream};
  return p.channels_last ? launch(conv_winograd<T, true>, l, p) : launch(conv_winograd<T, false>, l, p);
}

int winograd_forward(const ConvForwardParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return run<std::remove_pointer_t<decltype(t)>>({p, p.x, p.workspace, p.epilogue, p.y}, p.w, false,
                                                   p.workspace, static_cast<cudaStream_t>(stream));
  });
}

int winograd_data(const ConvDataParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return run<std::remove_pointer_t<decltype(t)>>({mirror(p), p.dy, p.workspace, p.epilogue, p.dx}, p.w,
                                                   true, p.workspace, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops::conv
