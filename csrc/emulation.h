// CPU tensors may go to CUDA launchers that run in the simt runner (csrc/simt) instead of to the CPU kernels: which ones,
// each thread decides for itself. libdlops.so knows the launchers by their tables alone; the modules that hold them install
// them from Python (dlops.study.emulation).
#pragma once
#include "api.h"

namespace dlops {

// From now on, CPU tensors that this thread hands to an op of `family` go to `table` (a const DiffusionCuda*,
// const NormCuda*, ...); null: to the CPU kernels again. A null family means all of them.
DLOPS_API void emulate(const char* family, const void* table);

// The table installed for `family` in this thread, or null. Costs one thread-local read where there is none.
DLOPS_API const void* emulated(const char* family);

}  // namespace dlops
