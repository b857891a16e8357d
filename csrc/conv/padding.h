// Where an element of the padded input comes from.
#pragma once
#include "../cpu/simd.h"
#include "params.h"

namespace dlops {
namespace {

// The element of x, n long, that position i of the padded axis shows; -1 for a zero. The modes other than zeros know
// padding up to the length that torch allows them (n - 1 for reflect, n for circular).
DLOPS_INLINE int64_t padded_source(PaddingMode mode, int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  switch (mode) {
    case PaddingMode::zeros: return -1;
    case PaddingMode::reflect: return i < 0 ? -i : 2 * (n - 1) - i;
    case PaddingMode::replicate: return i < 0 ? 0 : n - 1;
    case PaddingMode::circular: return i < 0 ? i + n : i - n;
  }
  return -1;
}

}  // namespace
}  // namespace dlops
