// Places in a kernel: a line that a built-in was called from, or an instruction.
#pragma once
#include <string>

namespace dlops::simt {

struct Place {
  const void* at =
      nullptr;  // the file's name (const char*), or the address after the instruction where line is 0
  int line = 0;
};

// "csrc/cuda/reduce.h:88", and where that is inlined elsewhere, " (from csrc/norm/group.cuh:40)". Instructions need
// addr2line and debug information; without them the address is told.
std::string describe(Place);

}  // namespace dlops::simt
