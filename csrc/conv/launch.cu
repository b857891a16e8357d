// The table of the family's CUDA kernels. nvcc compiles this file and launch_*.cu, and g++ against the simt runner.
#include "launch.h"

#include <iterator>

#include "depthwise.cuh"
#include "depthwise_columns.cuh"
#include "depthwise_last.cuh"
#include "depthwise_rows.cuh"
#include "depthwise_weight.cuh"
#include "depthwise_weight_columns.cuh"
#include "depthwise_weight_last.cuh"
#include "depthwise_weight_rows.cuh"
#include "implicit_gather.cuh"
#include "implicit_weight.cuh"
#include "launch_parts.h"
#include "naive.cuh"
#include "parts.cuh"
#include "shared.cuh"
#include "shared_weight.cuh"
#include "winograd.cuh"

namespace dlops {
namespace {

using namespace conv;

// The first row of an op and variant is its main kernel; the others share the work.
constexpr KernelInfo kKernels[] = {kNaiveForward,
                                   kNaiveData,
                                   kNaiveWeight,
                                   kSharedForward,
                                   kSharedData,
                                   kSharedWeight,
                                   kSharedWeights,
                                   kSumParts,
                                   kWinograd,
                                   kWinogradData,
                                   kWinogradWeights,
                                   kDepthwiseLast,
                                   kDepthwiseRows,
                                   kDepthwiseColumns,
                                   kDepthwiseAny,
                                   kDepthwiseGather,
                                   kDepthwiseWeights,
                                   kDepthwiseWeightLast,
                                   kDepthwiseWeightRows,
                                   kDepthwiseWeightColumns,
                                   kDepthwiseWeightAny,
                                   implicit::kImplicitForward,
                                   implicit::kImplicitData,
                                   implicit::kImplicitArrange,
                                   implicit::kImplicitWeight,
                                   implicit::kImplicitWeightSum};

#define DLOPS_LAUNCHERS(name) {conv::name##_refuses, conv::name##_workspace, conv::name}

}  // namespace

// In the order of Algorithm.
const ConvCuda conv_cuda = {{DLOPS_LAUNCHERS(naive_forward),
                             {},
                             {},
                             DLOPS_LAUNCHERS(winograd_forward),
                             {},
                             DLOPS_LAUNCHERS(depthwise_forward),
                             {},
                             DLOPS_LAUNCHERS(shared_forward),
                             DLOPS_LAUNCHERS(implicit_gemm_forward)},
                            {DLOPS_LAUNCHERS(naive_data),
                             {},
                             {},
                             DLOPS_LAUNCHERS(winograd_data),
                             {},
                             DLOPS_LAUNCHERS(depthwise_data),
                             {},
                             DLOPS_LAUNCHERS(shared_data),
                             DLOPS_LAUNCHERS(implicit_gemm_data)},
                            {DLOPS_LAUNCHERS(naive_weight),
                             {},
                             {},
                             {},
                             {},
                             DLOPS_LAUNCHERS(depthwise_weight),
                             {},
                             DLOPS_LAUNCHERS(shared_weight),
                             DLOPS_LAUNCHERS(implicit_gemm_weight)},
                            kKernels,
                            static_cast<int>(std::size(kKernels))};

}  // namespace dlops
