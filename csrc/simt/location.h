// Where in a kernel: the file and line of the caller, as a default argument of every built-in.
#pragma once
#include <cstring>

namespace dlops::simt {

struct Loc {
  const char* file;
  int line;
  Loc(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
  bool operator==(const Loc& o) const {
    return line == o.line && (file == o.file || !std::strcmp(file, o.file));
  }
};

}  // namespace dlops::simt

// The trailing parameter of a wrapper, in simt builds only:  inline void f(int x DLOPS_LOC) { simt::f(x, loc); }
#define DLOPS_LOC , ::dlops::simt::Loc loc = ::dlops::simt::Loc()
#define DLOPS_LOC_ONLY ::dlops::simt::Loc loc = ::dlops::simt::Loc()
