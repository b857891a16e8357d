// The kernels of one instruction-set level, a file for each, so that they compile side by side. The namespace carries the
// level (DLOPS_TABLE, e.g. attention_avx2): levels share no symbol.
#pragma once
#include "params.h"

#define DLOPS_JOIN_NAMES(a, b) a##b
#define DLOPS_JOIN(a, b) DLOPS_JOIN_NAMES(a, b)
#define DLOPS_PARTS DLOPS_JOIN(DLOPS_TABLE, _parts)

namespace dlops::DLOPS_PARTS {

void naive(const AttentionForwardParams&);  // cpu_naive.cpp
void backward_naive(const AttentionBackwardParams&);
void tiled(const AttentionForwardParams&);      // cpu_forward.cpp; dot_forward.cpp
void backward(const AttentionBackwardParams&);  // cpu_backward.cpp; dot_backward.cpp
void split(const AttentionForwardParams&);      // cpu_split.cpp; dot_split.cpp
void rotary(const RotaryParams&);               // cpu_rotary.cpp

}  // namespace dlops::DLOPS_PARTS
