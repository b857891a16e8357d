// The driver's cuTensorMapEncodeTiled, as the simt runner plays it.
#pragma once
#include "tensor.h"

namespace dlops::simt {

// Fills *map, or refuses what the driver refuses and returns false. sizes[rank], strides[rank - 1] in bytes, box[rank]:
// innermost first; swizzle: as CUtensorMap's.
bool encode_tensor_map(CUtensorMap* map, const void* base, uint32_t elem_bytes, int rank,
                       const uint64_t* sizes, const uint64_t* strides, const uint32_t* box, uint32_t swizzle);

}  // namespace dlops::simt
