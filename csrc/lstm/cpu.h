// The table of the family's CPU kernels; one exists per instruction-set level.
#pragma once
#include "../api.h"
#include "../catalogue.h"
#include "params.h"

namespace dlops {

// One rung. refuses: why it cannot take a problem, as the end of a sentence; null: it can.
struct RecurrenceKernel {
  const char* (*refuses)(const RecurrenceProblem&);
  void (*forward)(const RecurrenceParams&);
  void (*backward)(const RecurrenceBackwardParams&);
};

// A weight [gates * units, depth] as the forward pass wants it.
struct PackParams {
  int gates;
  int64_t units, depth;
  Dtype dtype;
  const void* w;
  float* packed;  // packed_floats of them
};

struct LstmCpu {
  RecurrenceKernel rungs[kRungs];
  int64_t (*packed_floats)(const PackParams&);
  void (*pack)(const PackParams&);
  void (*gates)(const GatesParams&);
  void (*gates_backward)(const GatesBackwardParams&);
  const KernelInfo* kernels;
  int kernel_count;
};

extern const LstmCpu lstm_generic, lstm_avx2, lstm_avx512, lstm_avx512bf16;
DLOPS_API const LstmCpu& lstm_cpu();  // the table of the level in use

}  // namespace dlops
