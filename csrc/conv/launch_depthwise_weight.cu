#include "depthwise_weight.cuh"
#include "launch_parts.h"

namespace dlops::conv {

const char* depthwise_weight_refuses(const ConvProblem& p) {
  if (p.group_channels() != 1) return "is for one channel per group";
  return refuses_counts(p);
}

// Which kernel: the shape and the dtype decide, so that the workspace is known before there are tensors. A kernel that wants
// aligned tensors gives way to `any` where they are not; its workspace is no larger.
enum class Way { columns, rows, last, any };
static Way way_of(const ConvProblem& p) {
  const int vec = 16 / bytes_of(p.dtype);
  if (p.channels_last)
    return p.filters == p.channels && p.channels % 4 == 0 && p.stride[2] == 1 && p.dilation[2] == 1
               ? Way::last
               : Way::any;
  const int64_t window = window_of(p);
  if (p.kernel[0] * p.kernel[1] == 1 && p.stride[2] == 1 && p.dilation[2] == 1 && p.in[2] % vec == 0 &&
      (window == 31 || window == 32 || window == 43 || window == 52 || window == 73))
    return Way::rows;
  if (p.kernel[1] == p.kernel[2] && (p.kernel[1] == 3 || p.kernel[1] == 5 || p.kernel[1] == 7) &&
      p.stride[1] == 1 && p.dilation[1] == 1)
    return Way::columns;
  return Way::any;
}
static Parts parts_of(const ConvProblem& p, Way way) {
  const int64_t planes = p.batch * p.out[0];
  switch (way) {
    case Way::columns:
      return parts_of(planes * ceil_div(p.out[1], kStrip) * p.out[2], p.filters * p.kernel[0],
                      2 * kRowThreads, 1);
    case Way::rows:
      return parts_of(planes * p.out[1] * ceil_div(p.out[2], 16 / bytes_of(p.dtype)), p.filters,
                      4 * kRowThreads, 1);
    case Way::last:
      return parts_of(planes * p.out[1] * ceil_div(p.out[2], kStrip),
                      ceil_div(p.channels, 4 * kLastQuads) * p.kernel[0] * p.kernel[1], 4 * kLastLanes, 1);
    case Way::any:
      return parts_of(
          planes * p.out[1] * p.out[2],
          ceil_div(p.filters, p.channels_last ? kRowThreads : 1) * ceil_div(p.taps(), kTapsTogether),
          p.channels_last ? 64 : 4 * kRowThreads, 1);
  }
  return {};
}
static int64_t most_parts(const ConvProblem& p) {
  const int64_t chosen = parts_of(p, way_of(p)).count, any = parts_of(p, Way::any).count;
  return chosen > any ? chosen : any;
}
int64_t depthwise_weight_workspace(const ConvProblem& p) { return most_parts(p) * p.filters * p.taps(); }

template <class T>
static int any(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  const int64_t tasks = ceil_div(p.filters, p.channels_last ? kRowThreads : 1) *
                        ceil_div(p.taps(), kTapsTogether) * parts.count;
  const Launch l{task_grid(tasks), dim3(kRowThreads), 0, stream};
  return p.channels_last ? launch(conv_depthwise_weight_any<T, true>, l, p, parts)
                         : launch(conv_depthwise_weight_any<T, false>, l, p, parts);
}

int depthwise_weight(const ConvWeightParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    Way way = way_of(p);
    if (way == Way::rows && !wide_rows<T>(p.in[2], p.x)) way = Way::any;
    if (way == Way::last && !quads_aligned<T>(p.x, p.dy)) way = Way::any;
    const Parts parts = parts_of(p, way);
    const int error = way == Way::columns ? depthwise_weight_columns(p, parts, s)
                      : way == Way::rows  ? depthwise_weight_rows(p, parts, s)
                      : way == Way::last  ? depthwise_weight_last(p, parts, s)
                                          : any<T>(p, parts, s);
    return error != cudaSuccess ? error : sum_parts<T>(p, parts.count, s);
  });
}

}  // namespace dlops::conv
