// The convolution family on the CPU: what exists. The kernels compile in cpu_*.cpp, once per instruction-set level.
// DLOPS_TABLE is the level's table, e.g. conv_avx2.
#include "cpu.h"

#include "cpu_parts.h"

namespace dlops {
namespace {

#define DLOPS_CONV_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "conv", variant, "f32 f16 bf16", tile, name)

constexpr KernelInfo kKernels[] = {
    DLOPS_CONV_KERNEL("conv", "direct", "register tile of pixels x filters", "direct_forward"),
    DLOPS_CONV_KERNEL("conv", "gemm", "register tile of pixels x filters", "gemm_forward"),
    DLOPS_CONV_KERNEL("conv", "winograd", "4x4 outputs", "winograd_forward"),
    DLOPS_CONV_KERNEL("conv", "winograd_f2", "2x2 outputs", "winograd_f2_forward"),
    DLOPS_CONV_KERNEL("conv", "depthwise", "rows of pixels, or channels in lanes", "depthwise_forward"),
    DLOPS_CONV_KERNEL("conv", "grouped", "channels in lanes", "grouped_forward"),
    DLOPS_CONV_KERNEL("conv", "naive", "1 element", "naive_forward"),
    DLOPS_CONV_KERNEL("conv_data", "direct", "register tile of pixels x channels", "direct_data"),
    DLOPS_CONV_KERNEL("conv_data", "gemm", "register tile of pixels x channels", "gemm_data"),
    DLOPS_CONV_KERNEL("conv_data", "winograd", "4x4 outputs", "winograd_data"),
    DLOPS_CONV_KERNEL("conv_data", "winograd_f2", "2x2 outputs", "winograd_f2_data"),
    DLOPS_CONV_KERNEL("conv_data", "depthwise", "rows of pixels, or channels in lanes", "depthwise_data"),
    DLOPS_CONV_KERNEL("conv_data", "grouped", "channels in lanes", "grouped_data"),
    DLOPS_CONV_KERNEL("conv_data", "naive", "1 element", "naive_data"),
    DLOPS_CONV_KERNEL("conv_weight", "direct", "register tile of channels x filters", "direct_weight"),
    DLOPS_CONV_KERNEL("conv_weight", "gemm", "register tile of channels x filters", "gemm_weight"),
    DLOPS_CONV_KERNEL("conv_weight", "winograd", "4x4 outputs", "winograd_weight"),
    DLOPS_CONV_KERNEL("conv_weight", "depthwise", "channels in lanes", "depthwise_weight"),
    DLOPS_CONV_KERNEL("conv_weight", "naive", "1 element", "naive_weight"),
};

#define DLOPS_PLAIN(name) {DLOPS_PARTS::name##_refuses, nullptr, nullptr, DLOPS_PARTS::name}
#define DLOPS_PACKED(name)                                                                   \
  {DLOPS_PARTS::name##_refuses, DLOPS_PARTS::name##_packed_floats, DLOPS_PARTS::name##_pack, \
   DLOPS_PARTS::name}

}  // namespace

// In the order of Algorithm.
extern const ConvCpu DLOPS_TABLE = {
    {DLOPS_PLAIN(naive_forward), DLOPS_PACKED(direct_forward), DLOPS_PACKED(gemm_forward),
     DLOPS_PACKED(winograd_forward), DLOPS_PACKED(winograd_f2_forward), DLOPS_PACKED(depthwise_forward),
     DLOPS_PACKED(grouped_forward)},
    {DLOPS_PLAIN(naive_data), DLOPS_PACKED(direct_data), DLOPS_PACKED(gemm_data), DLOPS_PACKED(winograd_data),
     DLOPS_PACKED(winograd_f2_data), DLOPS_PACKED(depthwise_data), DLOPS_PACKED(grouped_data)},
    {DLOPS_PLAIN(naive_weight),
     DLOPS_PLAIN(direct_weight),
     DLOPS_PLAIN(gemm_weight),
     DLOPS_PLAIN(winograd_weight),
     {},
     DLOPS_PLAIN(depthwise_weight),
     {}},
    kKernels,
    static_cast<int>(sizeof kKernels / sizeof *kKernels)};

}  // namespace dlops
