// New tensors by the shortest way through the stable ABI: one C call, where torch::stable::empty_like and new_empty look
// their op up by name on every call (measured: several microseconds each, more than a small kernel).
#pragma once
#include "face.h"

namespace dlops::face {

inline Tensor new_strided(const Tensor& like, int64_t dims, const int64_t* sizes, const int64_t* strides,
                          int32_t dtype) {
  int32_t device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype, device, like.get_device_index(), &made));
  return Tensor(made);
}

// Like t, which must be dense: its shape, strides, dtype and device.
inline Tensor new_like(const Tensor& t) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return new_strided(t, t.dim(), t.sizes().data(), t.strides().data(), dtype);
}

// Contiguous float32 on like's device.
inline Tensor new_floats(const Tensor& like, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * (shape[i] > 1 ? shape[i] : 1);
  return new_strided(like, static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                     aoti_torch_dtype_float32());
}

}  // namespace dlops::face
