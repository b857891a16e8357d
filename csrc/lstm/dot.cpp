// The table of the level that has the bfloat16 dot product (vdpbf16ps): its own forward pass for bfloat16, in dot_forward.cpp,
// and the AVX-512 level's kernels for the rest.
#include "cpu.h"

#include "cpu_parts.h"

namespace dlops {

namespace lstm_avx512_parts {
const char* cells_refuses(const RecurrenceProblem&);
void cells_forward(const RecurrenceParams&);
void cells_backward(const RecurrenceBackwardParams&);
const char* fused_refuses(const RecurrenceProblem&);
void fused_backward(const RecurrenceBackwardParams&);
void gates(const GatesParams&);
void gates_backward(const GatesBackwardParams&);
}  // namespace lstm_avx512_parts

namespace {

namespace avx512 = lstm_avx512_parts;

constexpr KernelInfo kKernels[] = {DLOPS_CPU_KERNEL("recurrence", "lstm", "fused_cell", "bf16",
                                                    "all gates of some units x samples", "fused_forward")};

}  // namespace

extern const LstmCpu DLOPS_TABLE = {
    {{avx512::cells_refuses, avx512::cells_forward, avx512::cells_backward},
     {avx512::fused_refuses, DLOPS_PARTS::fused_forward, avx512::fused_backward},
     {}},
    DLOPS_PARTS::packed_floats,
    DLOPS_PARTS::pack,
    avx512::gates,
    avx512::gates_backward,
    kKernels,
    static_cast<int>(sizeof kKernels / sizeof *kKernels)};

}  // namespace dlops
