// The launchers, one group per .cu file so that they compile side by side. Use the table in launch.h.
#pragma once
#include "launch.h"

namespace dlops::conv {

#define DLOPS_CONV_LAUNCHER(name, Params)         \
  const char* name##_refuses(const ConvProblem&); \
  int64_t name##_workspace(const ConvProblem&);   \
  int name(const Params&, dlops_stream)

DLOPS_CONV_LAUNCHER(naive_forward, ConvForwardParams);  // launch_naive.cu
DLOPS_CONV_LAUNCHER(naive_data, ConvDataParams);
DLOPS_CONV_LAUNCHER(naive_weight, ConvWeightParams);

DLOPS_CONV_LAUNCHER(shared_forward, ConvForwardParams);  // launch_shared.cu
DLOPS_CONV_LAUNCHER(shared_data, ConvDataParams);
DLOPS_CONV_LAUNCHER(shared_weight, ConvWeightParams);

DLOPS_CONV_LAUNCHER(winograd_forward,
                    ConvForwardParams);  // launch_winograd.cu: F(2x2, 3x3), float32 arithmetic
DLOPS_CONV_LAUNCHER(winograd_data, ConvDataParams);

DLOPS_CONV_LAUNCHER(depthwise_forward, ConvForwardParams);  // launch_depthwise.cu
DLOPS_CONV_LAUNCHER(depthwise_data, ConvDataParams);
DLOPS_CONV_LAUNCHER(depthwise_weight, ConvWeightParams);  // launch_depthwise_weight.cu

DLOPS_CONV_LAUNCHER(implicit_gemm_forward, ConvForwardParams);  // launch_implicit*.cu
DLOPS_CONV_LAUNCHER(implicit_gemm_data, ConvDataParams);
DLOPS_CONV_LAUNCHER(implicit_gemm_weight, ConvWeightParams);

}  // namespace dlops::conv
