// The table of the level that has the bfloat16 dot product (vdpbf16ps): its own kernels for bfloat16, in dot_*.cpp, and
// the AVX-512 level's for the other types.
#include "cpu.h"

#include "cpu_parts.h"

namespace dlops {

namespace attention_avx512_parts {
void naive(const AttentionForwardParams&);
void backward_naive(const AttentionBackwardParams&);
void rotary(const RotaryParams&);
}  // namespace attention_avx512_parts

namespace {

namespace avx512 = attention_avx512_parts;

#define DLOPS_DOT_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "attention", variant, "bf16", tile, name)

constexpr KernelInfo kTiled =
    DLOPS_DOT_KERNEL("attention", "tiled", "8 vectors of rows x 96 keys", "forward_block");
void tiled(const AttentionForwardParams& p) { DLOPS_PARTS::tiled(p); }

constexpr KernelInfo kSplit =
    DLOPS_DOT_KERNEL("attention", "split", "a group's rows x 512 keys", "split_keys");
void split(const AttentionForwardParams& p) { DLOPS_PARTS::split(p); }

constexpr KernelInfo kBackward =
    DLOPS_DOT_KERNEL("attention_backward", "tiled", "4 vectors of rows x 96 keys", "backward");
void backward(const AttentionBackwardParams& p) { DLOPS_PARTS::backward(p); }

constexpr KernelInfo kKernels[] = {kTiled, kSplit, kBackward};

}  // namespace

extern const AttentionCpu DLOPS_TABLE = {avx512::naive, tiled,          split,    avx512::backward_naive,
                                         backward,      avx512::rotary, kKernels, 3};

}  // namespace dlops
