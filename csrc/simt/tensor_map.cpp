#include "tensor_map.h"

namespace dlops::simt {

// The driver's rules: cuda.h, cuTensorMapEncodeTiled, no interleave. (It also takes a size of 2^32 itself.)
bool encode_tensor_map(CUtensorMap* map, const void* base, uint32_t elem_bytes, int rank,
                       const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                       uint32_t swizzle) {
  if (reinterpret_cast<uintptr_t>(map) % alignof(CUtensorMap) || reinterpret_cast<uintptr_t>(base) % 16)
    return false;
  if (rank < 2 || rank > 4 || swizzle > 3) return false;
  for (int i = 0; i < rank; i++) {
    if (sizes[i] == 0 || sizes[i] >= uint64_t(1) << 32 || box[i] == 0 || box[i] > 256) return false;
    if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= uint64_t(1) << 40)) return false;
  }
  const uint32_t row_bytes = box[0] * elem_bytes;
  if (row_bytes % 16 || (swizzle != 0 && row_bytes > 16u << swizzle)) return false;

  *map = {};
  map->base = static_cast<char*>(const_cast<void*>(base));
  map->rank = static_cast<uint32_t>(rank);
  map->elem_bytes = elem_bytes;
  map->swizzle = swizzle;
  for (int i = 0; i < 4; i++) {  // the dimensions that are not there are 1
    map->size[i] = i < rank ? static_cast<uint32_t>(sizes[i]) : 1;
    map->box[i] = i < rank ? box[i] : 1;
    if (i > 0 && i < rank) map->stride[i - 1] = strides[i - 1];
  }
  return true;
}

}  // namespace dlops::simt
