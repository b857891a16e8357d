// The kernels of one instruction-set level, a file for each, so that they compile side by side. The namespace carries the
// level (DLOPS_TABLE, e.g. lstm_avx2): levels share no symbol.
#pragma once
#include "cpu.h"

#define DLOPS_JOIN_NAMES(a, b) a##b
#define DLOPS_JOIN(a, b) DLOPS_JOIN_NAMES(a, b)
#define DLOPS_PARTS DLOPS_JOIN(DLOPS_TABLE, _parts)

namespace dlops::DLOPS_PARTS {

const char* cells_refuses(const RecurrenceProblem&);  // cpu_cells.cpp
void cells_forward(const RecurrenceParams&);
void cells_backward(const RecurrenceBackwardParams&);

const char* fused_refuses(const RecurrenceProblem&);
int64_t packed_floats(const PackParams&);  // cpu_forward.cpp
void pack(const PackParams&);
void fused_forward(const RecurrenceParams&);
void fused_backward(const RecurrenceBackwardParams&);  // cpu_backward.cpp

void gates(const GatesParams&);  // cpu_gates.cpp
void gates_backward(const GatesBackwardParams&);

}  // namespace dlops::DLOPS_PARTS
