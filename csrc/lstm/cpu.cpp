// The recurrent family on the CPU: what exists. The kernels compile in cpu_*.cpp, once per instruction-set level.
// DLOPS_TABLE is the level's table, e.g. lstm_avx2.
#include "cpu.h"

#include "cpu_parts.h"

namespace dlops {
namespace {

#define DLOPS_LSTM_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "lstm", variant, "f32 f16 bf16", tile, name)

constexpr KernelInfo kKernels[] = {
    DLOPS_LSTM_KERNEL("recurrence", "fused_cell", "all gates of some units x samples", "fused_forward"),
    DLOPS_LSTM_KERNEL("recurrence", "cells", "1 element", "cells_forward"),
    DLOPS_LSTM_KERNEL("recurrence_backward", "fused_cell", "units x samples", "fused_backward"),
    DLOPS_LSTM_KERNEL("recurrence_backward", "cells", "1 element", "cells_backward"),
    DLOPS_LSTM_KERNEL("gates", "fused_cell", "1 vector of units", "gates"),
    DLOPS_LSTM_KERNEL("gates_backward", "fused_cell", "1 vector of units", "gates_backward"),
};

}  // namespace

// The rungs in the order of Rung.
extern const LstmCpu DLOPS_TABLE = {
    {{DLOPS_PARTS::cells_refuses, DLOPS_PARTS::cells_forward, DLOPS_PARTS::cells_backward},
     {DLOPS_PARTS::fused_refuses, DLOPS_PARTS::fused_forward, DLOPS_PARTS::fused_backward},
     {}},
    DLOPS_PARTS::packed_floats,
    DLOPS_PARTS::pack,
    DLOPS_PARTS::gates,
    DLOPS_PARTS::gates_backward,
    kKernels,
    static_cast<int>(sizeof kKernels / sizeof *kKernels)};

}  // namespace dlops
