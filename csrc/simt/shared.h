// Shared memory: one arena per block, all NaN at the start (in float, half and bfloat16), with guards between the
// variables. A 32-bit shared address is an offset into it plus kSharedBase, so every address that an instruction gets can be
// checked. Variables are aligned as declared and no better, so that luck hides no misalignment.
#pragma once
#include "machine.h"

namespace dlops::simt {

constexpr size_t kArena = 256 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;  // what one block may have on sm_90
constexpr size_t kSharedBase = 1024;
constexpr size_t kGuard = 512;  // bytes between variables that must stay untouched
constexpr int kPoison = 0xff;

void start_shared(Block&, size_t dynamic_bytes);  // before the block runs
std::string overrun(const Block&);                // after it: a message, or ""

// The variable that holds [offset, offset + bytes) of the arena, or null.
const SharedVariable* find_variable(const Block&, size_t offset, size_t bytes);
// "byte 8 of scratch".
std::string describe_shared(const Block&, size_t offset);

char* shared_pointer(const Block&, uint32_t address);
// Checked: [address, address + bytes) must lie in one variable of the block.
char* shared_pointer(const Thread&, uint32_t address, size_t bytes, const char* what, Loc);
inline char* shared_pointer(uint32_t address, size_t bytes, const char* what, Loc loc) {
  return shared_pointer(*self(), address, bytes, what, loc);
}

}  // namespace dlops::simt
