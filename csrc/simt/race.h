// The race build's entry for ordinary loads and stores.
#pragma once
#include <cstddef>

namespace dlops::simt {

void plain_access(const void* p, size_t bytes, bool write, const void* pc);

}  // namespace dlops::simt
