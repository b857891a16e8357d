// The fused kernels of one instruction-set level, a file for each pair of functions, so that they compile side by side. The
// namespace carries the level (DLOPS_TABLE, e.g. norm_avx2): levels share no symbol.
#pragma once
#include <type_traits>

#include "../cpu/simd.h"
#include "params.h"

#define DLOPS_JOIN_NAMES(a, b) a##b
#define DLOPS_JOIN(a, b) DLOPS_JOIN_NAMES(a, b)
#define DLOPS_PARTS DLOPS_JOIN(DLOPS_TABLE, _parts)

namespace dlops::DLOPS_PARTS {

void group_planes(const GroupNormParams&);  // NCHW: cpu_group.cpp
void group_planes_backward(const GroupNormBackwardParams&);
void group_pixels(
    const GroupNormParams&);  // channels_last, at least as many channels as lanes: cpu_group_last.cpp
void group_pixels_backward(const GroupNormBackwardParams&);
void rows(const RowNormParams&);  // cpu_rows.cpp
void rows_backward(const RowNormBackwardParams&);

}  // namespace dlops::DLOPS_PARTS

namespace dlops {
namespace {

// f(element type tag, true_type or false_type): one instantiation per dtype and flag.
template <class F>
void with_dtype_and(Dtype dtype, bool flag, F f) {
  with_dtype(dtype, [&](auto* t) { flag ? f(t, std::true_type()) : f(t, std::false_type()); });
}
template <class Pointer>
using Element = std::remove_pointer_t<Pointer>;

}  // namespace
}  // namespace dlops
