#include "emulation.h"

#include <map>
#include <string>

namespace dlops {
namespace {

thread_local bool any = false;

std::map<std::string, const void*>& tables() {
  thread_local std::map<std::string, const void*> installed;
  return installed;
}

}  // namespace

void emulate(const char* family, const void* table) {
  if (!family)
    tables().clear();
  else if (table)
    tables()[family] = table;
  else
    tables().erase(family);
  any = !tables().empty();
}

const void* emulated(const char* family) {
  if (!any) return nullptr;
  const auto found = tables().find(family);
  return found == tables().end() ? nullptr : found->second;
}

}  // namespace dlops
