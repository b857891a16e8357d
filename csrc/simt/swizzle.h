// How TMA and wgmma permute 16-byte chunks against bank conflicts (PTX ISA 5.5.7, "Swizzling Modes"): the chunk's place in
// its 128, 64 or 32 bytes is XORed with the number of the 128-byte line.
#pragma once
#include <cstdint>

namespace dlops::simt {

// mode: 0 none, 1 32 bytes, 2 64, 3 128 (a tensor map's; a wgmma descriptor counts 3, 2, 1).
inline uint32_t swizzled(uint32_t address, uint32_t mode) {
  const uint32_t lines = (1u << mode) - 1;
  return address ^ (address >> 7 & lines) << 4;
}

}  // namespace dlops::simt
