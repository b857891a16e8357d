// The attention family on the CPU: what exists. The kernels are in forward.h, naive_forward.h, split.h, backward.h,
// naive_backward.h and cpu_rotary.cpp; they compile in cpu_*.cpp, once per instruction-set level. DLOPS_TABLE is the level's
// table, e.g. attention_avx2. The level with the bfloat16 dot product has a table of its own, in dot.cpp.
#include "cpu.h"

#include "cpu_parts.h"

namespace dlops {
namespace {

#define DLOPS_ATTENTION_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "attention", variant, "f32 f16 bf16", tile, name)

constexpr KernelInfo kNaive = DLOPS_ATTENTION_KERNEL("attention", "naive", "1 row", "forward_row_naive");
void naive(const AttentionForwardParams& p) { DLOPS_PARTS::naive(p); }

constexpr KernelInfo kTiled =
    DLOPS_ATTENTION_KERNEL("attention", "tiled", "4 to 8 vectors of rows x 96 keys", "forward_block");
void tiled(const AttentionForwardParams& p) { DLOPS_PARTS::tiled(p); }

constexpr KernelInfo kSplit =
    DLOPS_ATTENTION_KERNEL("attention", "split", "a group's rows x 512 keys", "split_keys");
void split(const AttentionForwardParams& p) { DLOPS_PARTS::split(p); }

constexpr KernelInfo kBackwardNaive =
    DLOPS_ATTENTION_KERNEL("attention_backward", "naive", "1 row", "backward_naive_of");
void backward_naive(const AttentionBackwardParams& p) { DLOPS_PARTS::backward_naive(p); }

constexpr KernelInfo kBackward =
    DLOPS_ATTENTION_KERNEL("attention_backward", "tiled", "4 vectors of rows x 96 keys", "backward");
void backward(const AttentionBackwardParams& p) { DLOPS_PARTS::backward(p); }

constexpr KernelInfo kRotary = DLOPS_ATTENTION_KERNEL("rotary", "fused", "1 row", "rotary");
void rotary(const RotaryParams& p) { DLOPS_PARTS::rotary(p); }

constexpr KernelInfo kKernels[] = {kTiled, kNaive, kSplit, kBackward, kBackwardNaive, kRotary};

}  // namespace

extern const AttentionCpu DLOPS_TABLE = {naive, tiled, split, backward_naive, backward, rotary, kKernels, 6};

}  // namespace dlops
