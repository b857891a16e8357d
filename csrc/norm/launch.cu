// The table of the family's CUDA kernels. nvcc compiles this file and launch_*.cu, and g++ against the simt runner.
#include "launch.h"

#include <iterator>

#include "group.cuh"
#include "group_backward.cuh"
#include "group_large.cuh"
#include "launch_parts.h"
#include "rows_backward.cuh"

namespace dlops {
namespace {

using namespace norm;

// The first row of an op and variant is its main kernel; the others share the work.
constexpr KernelInfo kKernels[] = {kGroupBlock,         kGroupStats,   kGroupStatsLast,   kGroupFinish,
                                   kGroupMap,           kGroupMapLast, kGroupNaive,       kGroupBackward,
                                   kGroupSumsLast,      kGroupCombine, kGroupDx,          kGroupDxLast,
                                   kGroupBackwardNaive, kRows,         kRowsNaive,        kRowsBackward,
                                   kRowsColumns,        kColumnSums,   kRowsBackwardNaive};

}  // namespace

const NormCuda norm_cuda = {group_norm_cuda,
                            group_norm_naive_cuda,
                            group_norm_backward_cuda,
                            group_norm_backward_naive_cuda,
                            row_norm_cuda,
                            row_norm_naive_cuda,
                            row_norm_backward_cuda,
                            row_norm_backward_naive_cuda,
                            group_norm_workspace_cuda,
                            group_norm_backward_workspace_cuda,
                            row_norm_backward_workspace_cuda,
                            kKernels,
                            static_cast<int>(std::size(kKernels))};

}  // namespace dlops
