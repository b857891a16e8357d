// The table of the family's CUDA kernels. nvcc compiles this file and launch_*.cu, and g++ against the simt runner.
#include "launch.h"

#include <iterator>

#include "cells_backward.cuh"
#include "gates.cuh"
#include "gates_backward.cuh"
#include "launch_parts.h"
#include "persistent_backward.cuh"

namespace dlops {
namespace {

using namespace lstm;

// The first row of an op and variant is its main kernel; the others share the work.
constexpr KernelInfo kKernels[] = {kPersistentTurns, kFusedTurn,  kPersistentBackward, kFusedBackward,
                                   kCellsStep,       kCellsGates, kCellsState,         kHBefore,
                                   kGatesPlain,      kGatesNorm,  kGatesBackwardPlain, kGatesBackwardNorm};

#define DLOPS_RUNG(name)                                                                                    \
  {name##_refuses_cuda, name##_forward_workspace_cuda, name##_forward_cuda, name##_backward_workspace_cuda, \
   name##_backward_cuda}

}  // namespace

// The rungs in the order of Rung.
const LstmCuda lstm_cuda = {{DLOPS_RUNG(cells), DLOPS_RUNG(fused), DLOPS_RUNG(persistent)},
                            gates_cuda,
                            gates_backward_cuda,
                            h_before_cuda,
                            kKernels,
                            static_cast<int>(std::size(kKernels))};

}  // namespace dlops
