// The norm family on the CPU: what exists, and which kernel template serves which parameters. The kernels are in group.h
// (GroupNorm, NCHW), group_last.h (GroupNorm, channels_last), rows.h (LayerNorm, RMSNorm) and naive.h; see README.md.
// Compiled once per instruction-set level; DLOPS_TABLE is the level's table, e.g. norm_avx2.
#include "cpu.h"

#include "group_last.h"
#include "naive.h"
#include "rows.h"

namespace dlops {
namespace {

#define DLOPS_NORM_KERNEL(op, variant, tile, name) \
  DLOPS_CPU_KERNEL(op, "norm", variant, "f32 f16 bf16", tile, name)

// f(element type tag, true_type or false_type): one instantiation per dtype and flag.
template <class F>
void with_dtype_and(Dtype dtype, bool flag, F f) {
  with_dtype(dtype, [&](auto* t) { flag ? f(t, std::true_type()) : f(t, std::false_type()); });
}
template <class Pointer>
using Element = std::remove_pointer_t<Pointer>;

constexpr KernelInfo kGroupNaive = DLOPS_NORM_KERNEL("group_norm", "naive", "1 group", "group_forward_naive");
void group_norm_naive(const GroupNormParams& p) {
  with_dtype(p.dtype, [&](auto* t) { group_forward_naive<Element<decltype(t)>>(p); });
}

// Fewer channels than lanes leave nothing for channels_last's lanes to do.
constexpr KernelInfo kGroup =
    DLOPS_NORM_KERNEL("group_norm", "fused", "4096 elements, or 1 group", "group_forward");
void group_norm(const GroupNormParams& p) {
  if (p.channels_last && p.c < kLanes) return group_norm_naive(p);
  with_dtype_and(p.dtype, p.silu, [&](auto* t, auto silu) {
    using T = Element<decltype(t)>;
    p.channels_last ? group_last_forward<T, silu>(p) : group_forward<T, silu>(p);
  });
}

constexpr KernelInfo kGroupBackwardNaive =
    DLOPS_NORM_KERNEL("group_norm_backward", "naive", "1 group", "group_backward_naive");
void group_norm_backward_naive(const GroupNormBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { group_backward_naive<Element<decltype(t)>>(p); });
}

constexpr KernelInfo kGroupBackward =
    DLOPS_NORM_KERNEL("group_norm_backward", "fused", "4096 elements, or 1 group", "group_backward");
void group_norm_backward(const GroupNormBackwardParams& p) {
  if (p.channels_last && p.c < kLanes) return group_norm_backward_naive(p);
  with_dtype_and(p.dtype, p.silu, [&](auto* t, auto silu) {
    using T = Element<decltype(t)>;
    p.channels_last ? group_last_backward<T, silu>(p) : group_backward<T, silu>(p);
  });
}

constexpr KernelInfo kRows = DLOPS_NORM_KERNEL("row_norm", "fused", "2 rows", "rows_forward");
void row_norm(const RowNormParams& p) {
  with_dtype_and(p.dtype, p.rms, [&](auto* t, auto rms) { rows_forward<Element<decltype(t)>, rms>(p); });
}

constexpr KernelInfo kRowsNaive = DLOPS_NORM_KERNEL("row_norm", "naive", "1 row", "rows_forward_naive");
void row_norm_naive(const RowNormParams& p) {
  with_dtype(p.dtype, [&](auto* t) { rows_forward_naive<Element<decltype(t)>>(p); });
}

constexpr KernelInfo kRowsBackward =
    DLOPS_NORM_KERNEL("row_norm_backward", "fused", "2 rows of a block", "rows_backward");
void row_norm_backward(const RowNormBackwardParams& p) {
  with_dtype(p.dtype, [&](auto* t) { rows_backward<Element<decltype(t)>>(p); });
}

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
