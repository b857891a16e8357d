#include "symbols.h"

#include <dlfcn.h>

#include <cstdio>
#include <vector>

#include "report.h"

namespace dlops::simt {

std::string describe(Place p) {
  if (p.line) return str(Loc(static_cast<const char*>(p.at), p.line));
  Dl_info info;
  if (!dladdr(p.at, &info)) return format("address %p", p.at);
  const auto offset = static_cast<const char*>(p.at) - static_cast<const char*>(info.dli_fbase) - 1;
  std::vector<std::string> lines;  // innermost first
  if (FILE* f = popen(format("addr2line -i -e '%s' %tx 2>/dev/null", info.dli_fname, offset).c_str(), "r")) {
    char text[1024];
    while (std::fgets(text, sizeof text, f)) {
      std::string line = text;
      line.resize(line.find_first_of(" \n"));
      for (const char* top : {"/csrc/", "/tests/"})
        if (const size_t at = line.rfind(top); at != std::string::npos) line.erase(0, at + 1);
      if (!line.starts_with("??")) lines.push_back(tidy(line));
    }
    pclose(f);
  }
  // The runner's own frames (a vector's copy) say nothing.
  while (lines.size() > 1 && lines[0].find("csrc/simt/") != std::string::npos) lines.erase(lines.begin());
  if (lines.empty()) return format("%s+0x%tx", info.dli_fname, offset);
  return lines.size() == 1 ? lines[0] : lines[0] + " (from " + lines.back() + ")";
}

}  // namespace dlops::simt
