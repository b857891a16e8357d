// How a tile's 16-byte chunks are spread over shared memory's banks: PTX ISA 9.0, 5.5.7. Chunk c of each 128-byte line
// goes to c ^ (line % 2, 4 or 8), so that a column of 8 rows meets 8 different bank groups. The pattern is anchored at
// addresses: tiles start at a multiple of 1024 bytes.
#pragma once
#include <cstdint>

namespace dlops {

enum class Swizzle : uint32_t { none, b32, b64, b128 };  // the span in bytes within which chunks move

constexpr uint32_t swizzle_span(Swizzle s) {
  return s == Swizzle::none ? 16 : 16u << static_cast<uint32_t>(s);
}

// Where the byte at `offset` of a 1024-aligned tile lies.
constexpr uint32_t swizzled(Swizzle s, uint32_t offset) {
  return offset ^ ((offset >> 3) & (swizzle_span(s) - 16));
}

}  // namespace dlops
