// The norm family on the CPU: what exists, and which kernel template serves which parameters. The kernels are in group.h
// (GroupNorm, NCHW), group_last.h (GroupNorm, channels_last), rows.h (LayerNorm, RMSNorm) and naive.h; see README.md.
// They compile in cpu_group.cpp, cpu_group_last.cpp and cpu_rows.cpp. Once per instruction-set level; DLOPS_TABLE is the
// level's table, e.g. norm_avx2.
#include "cpu.h"

#include "cpu_parts.h"
#include "naive.h"

namespace dlops {
namespace {

#define DLOPS_NORM_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "norm", variant, "f32 f16 bf16", tile, name)

constexpr KernelInfo kGroupNaive = DLOPS_NORM_KERNEL("group_norm", "naive", "1 group", "group_forward_naive");
void group_norm_naive(const GroupNormParams& p) {
  with_dtype(p.dtype, [&](auto* t) { group_forward_naive<Element<decltype(t)>>(p); });
}

// Fewer channels than lanes leave nothing for channels_last's lanes to do.
constexpr KernelInfo kGroup =
    DLOPS_NORM_KERNEL("group_norm", "fused", "4096 elements, or 1 group", "group_forward");
void group_norm(const GroupNormParams& p) {
  if (!p.channels_last) return DLOPS_PARTS::group_planes(p);
  p.c < kLanes ? group_norm_naive(p) : DLOPS_PARTS::group_pixels(p);
}

constexpr KernelInfo kGroupBackwardNaive =
    DLOPS_NORM_KERNEL("group_norm_backward", "naive", "1 group", "group_backward_naive");
void group_norm_backward_naive(const GroupNormBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { group_backward_naive<Element<decltype(t)>>(p); });
}

constexpr KernelInfo kGroupBackward =
    DLOPS_NORM_KERNEL("group_norm_backward", "fused", "4096 elements, or 1 group", "group_backward");
void group_norm_backward(const GroupNormBackwardParams& p) {
  if (!p.channels_last) return DLOPS_PARTS::group_planes_backward(p);
  p.c < kLanes ? group_norm_backward_naive(p) : DLOPS_PARTS::group_pixels_backward(p);
}

constexpr KernelInfo kRows = DLOPS_NORM_KERNEL("row_norm", "fused", "2 rows", "rows_forward");
void row_norm(const RowNormParams& p) { DLOPS_PARTS::rows(p); }

constexpr KernelInfo kRowsNaive = DLOPS_NORM_KERNEL("row_norm", "naive", "1 row", "rows_forward_naive");
void row_norm_naive(const RowNormParams& p) {
  with_dtype(p.dtype, [&](auto* t) { rows_forward_naive<Element<decltype(t)>>(p); });
}

constexpr KernelInfo kRowsBackward =
    DLOPS_NORM_KERNEL("row_norm_backward", "fused", "2 rows of a block", "rows_backward");
void row_norm_backward(const RowNormBackwardParams& p) { DLOPS_PARTS::rows_backward(p); }

constexpr KernelInfo kRowsBackwardNaive =
    DLOPS_NORM_KERNEL("row_norm_backward", "naive", "1 row", "rows_backward_naive");
void row_norm_backward_naive(const RowNormBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { rows_backward_naive<Element<decltype(t)>>(p); });
}

constexpr KernelInfo kKernels[] = {kGroup, kGroupNaive, kGroupBackward, kGroupBackwardNaive,
                                   kRows,  kRowsNaive,  kRowsBackward,  kRowsBackwardNaive};

}  // namespace

extern const NormCpu DLOPS_TABLE = {group_norm,
                                    group_norm_naive,
                                    group_norm_backward,
                                    group_norm_backward_naive,
                                    row_norm,
                                    row_norm_naive,
                                    row_norm_backward,
                                    row_norm_backward_naive,
                                    kKernels,
                                    8};

}  // namespace dlops
