// The kernels of one instruction-set level, a file for each algorithm, so that they compile side by side. The namespace
// carries the level (DLOPS_TABLE, e.g. conv_avx2): levels share no symbol.
#pragma once
#include "cpu.h"

#define DLOPS_JOIN_NAMES(a, b) a##b
#define DLOPS_JOIN(a, b) DLOPS_JOIN_NAMES(a, b)
#define DLOPS_PARTS DLOPS_JOIN(DLOPS_TABLE, _parts)

namespace dlops::DLOPS_PARTS {

// An algorithm of a pass is four functions, named <algorithm>_<pass>_refuses and so on; those that are missing are null in
// the table (cpu.cpp).
#define DLOPS_CONV_PART(name, Params)             \
  const char* name##_refuses(const ConvProblem&); \
  void name(const Params&)
#define DLOPS_CONV_PACKED_PART(name, Params)        \
  DLOPS_CONV_PART(name, Params);                    \
  int64_t name##_packed_floats(const ConvProblem&); \
  void name##_pack(const ConvProblem&, const void* w, float* packed)

DLOPS_CONV_PART(naive_forward, ConvForwardParams);  // cpu_naive.cpp
DLOPS_CONV_PART(naive_data, ConvDataParams);
DLOPS_CONV_PART(naive_weight, ConvWeightParams);

DLOPS_CONV_PACKED_PART(direct_forward, ConvForwardParams);  // cpu_direct.cpp
DLOPS_CONV_PACKED_PART(direct_data, ConvDataParams);
DLOPS_CONV_PART(direct_weight, ConvWeightParams);  // cpu_direct_weight.cpp

DLOPS_CONV_PACKED_PART(gemm_forward, ConvForwardParams);  // cpu_gemm.cpp: 1x1
DLOPS_CONV_PACKED_PART(gemm_data, ConvDataParams);
DLOPS_CONV_PART(gemm_weight, ConvWeightParams);

DLOPS_CONV_PACKED_PART(winograd_forward, ConvForwardParams);  // cpu_winograd.cpp: F(4x4, 3x3)
DLOPS_CONV_PACKED_PART(winograd_data, ConvDataParams);
DLOPS_CONV_PART(winograd_weight, ConvWeightParams);              // cpu_winograd_weight.cpp
DLOPS_CONV_PACKED_PART(winograd_f2_forward, ConvForwardParams);  // cpu_winograd_f2.cpp: F(2x2, 3x3)
DLOPS_CONV_PACKED_PART(winograd_f2_data, ConvDataParams);

DLOPS_CONV_PACKED_PART(depthwise_forward, ConvForwardParams);  // cpu_depthwise.cpp
DLOPS_CONV_PACKED_PART(depthwise_data, ConvDataParams);
DLOPS_CONV_PART(depthwise_weight, ConvWeightParams);  // cpu_depthwise_weight.cpp

DLOPS_CONV_PACKED_PART(grouped_forward, ConvForwardParams);  // cpu_grouped.cpp
DLOPS_CONV_PACKED_PART(grouped_data, ConvDataParams);

}  // namespace dlops::DLOPS_PARTS
