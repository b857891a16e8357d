#include "launch_parts.h"
#include "naive.cuh"

namespace dlops::conv {

const char* naive_forward_refuses(const ConvProblem& p) { return refuses_counts(p); }
const char* naive_data_refuses(const ConvProblem& p) { return refuses_counts(p); }
const char* naive_weight_refuses(const ConvProblem& p) { return refuses_counts(p); }
int64_t naive_forward_workspace(const ConvProblem&) { return 0; }
int64_t naive_data_workspace(const ConvProblem&) { return 0; }
int64_t naive_weight_workspace(const ConvProblem&) { return 0; }

int naive_forward(const ConvForwardParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(conv_naive_forward<std::remove_pointer_t<decltype(t)>>,
                  {flat_grid(p.batch * p.filters * p.out_pixels()), dim3(kRowThreads), 0,
                   static_cast<cudaStream_t>(stream)},
                  p);
  });
}

int naive_data(const ConvDataParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(conv_naive_data<std::remove_pointer_t<decltype(t)>>,
                  {flat_grid(p.batch * p.channels * p.in_pixels()), dim3(kRowThreads), 0,
                   static_cast<cudaStream_t>(stream)},
                  p);
  });
}

int naive_weight(const ConvWeightParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(conv_naive_weight<std::remove_pointer_t<decltype(t)>>,
                  {flat_grid(p.filters * p.group_channels() * p.taps()), dim3(kRowThreads), 0,
                   static_cast<cudaStream_t>(stream)},
                  p);
  });
}

}  // namespace dlops::conv
