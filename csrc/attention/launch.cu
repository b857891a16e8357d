// The table of the family's CUDA kernels. nvcc compiles this file and launch_*.cu, and g++ against the simt runner.
#include "launch.h"

#include <iterator>

#include "backward_pass.cuh"
#include "launch_parts.h"
#include "mask_gradient.cuh"
#include "naive_backward.cuh"
#include "online.cuh"
#include "pipelined.cuh"
#include "rotary.cuh"
#include "split.cuh"
#include "tiled.cuh"

namespace dlops {
namespace {

using namespace attention;

int64_t forward_workspace(const AttentionForwardParams& p) {
  switch (p.scratch) {
    case AttentionScratch::naive: return attention_naive_workspace(p);
    case AttentionScratch::split: return attention_split_workspace(p);
    default: return 0;
  }
}

// The first row of an op and variant is its main kernel; the others share the work.
constexpr KernelInfo kKernels[] = {kPipelined,         kTiled,           kOnline,          kNaiveScores,
                                   kNaiveSoftmax,      kNaiveValues,     kSplit,           kSplitMerge,
                                   kBackwardMma,       kBackwardFp32,    kMaskGradient,    kBackwardPrepare,
                                   kBackwardSinks,     kBackwardConvert, kBackwardCareful, kBackwardNaiveRows,
                                   kBackwardNaiveKeys, kRotary};

}  // namespace

const AttentionCuda attention_cuda = {attention_naive_cuda,
                                      attention_online_cuda,
                                      attention_tiled_cuda,
                                      attention_pipelined_cuda,
                                      attention_split_cuda,
                                      backward_naive_cuda,
                                      backward_cuda,
                                      rotary_cuda,
                                      forward_workspace,
                                      backward_workspace_cuda,
                                      kKernels,
                                      static_cast<int>(std::size(kKernels))};

}  // namespace dlops
