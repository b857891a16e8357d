// Reads a tensor of any framework through DLPack (https://dmlc.github.io/dlpack, version 0 structures), so that the
// study module needs no framework's headers and no raw pointers in its signatures.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../dtype.h"

namespace dlops::python {

namespace py = pybind11;

// The DLPack ABI.
struct DLDevice {
  int32_t device_type;  // 1: CPU, 2: CUDA
  int32_t device_id;
};
struct DLDataType {
  uint8_t code, bits;  // code 0: int, 2: float, 4: bfloat
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C order
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

// Holds the tensor until the call is over.
class Array {
 public:
  Array(const char* argument, const py::object& object) : argument_(argument) {
    if (!py::hasattr(object, "__dlpack__")) fail("is no DLPack tensor");
    py::object source = py::hasattr(object, "detach") ? object.attr("detach")() : object;
    capsule_ = source.attr("__dlpack__")();
    tensor_ = &capsule_.get_pointer<DLManagedTensor>()->dl_tensor;
    int64_t expected = 1;
    for (int i = tensor_->ndim - 1; i >= 0; i--) {
      if (tensor_->strides && tensor_->shape[i] > 1 && tensor_->strides[i] != expected)
        fail("must be contiguous");
      expected *= tensor_->shape[i];
    }
    numel_ = expected;
    if (tensor_->device.device_type != 1) fail("must be on the CPU");
  }

  int64_t numel() const { return numel_; }
  int64_t size(int dim) const {
    if (dim >= tensor_->ndim) fail("has too few dimensions");
    return tensor_->shape[dim];
  }
  int64_t samples() const { return size(0); }
  void* data() const { return static_cast<char*>(tensor_->data) + tensor_->byte_offset; }

  Dtype dtype() const {
    if (tensor_->dtype.code == 2 && tensor_->dtype.bits == 32) return Dtype::f32;
    if (tensor_->dtype.code == 2 && tensor_->dtype.bits == 16) return Dtype::f16;
    if (tensor_->dtype.code == 4 && tensor_->dtype.bits == 16) return Dtype::bf16;
    fail("must be float32, float16 or bfloat16");
  }
  float* floats() const {
    if (dtype() != Dtype::f32) fail("must be float32");
    return static_cast<float*>(data());
  }
  int64_t* integers() const {
    if (tensor_->dtype.code != 0 || tensor_->dtype.bits != 64) fail("must be int64");
    return static_cast<int64_t*>(data());
  }
  void expect_like(const Array& other) const {
    if (numel_ != other.numel_ || dtype() != other.dtype())
      fail("must have the size and dtype of the first tensor");
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::invalid_argument(std::string(argument_) + " " + what);
  }

  const char* argument_;
  py::capsule capsule_;
  DLTensor* tensor_;
  int64_t numel_ = 0;
};

}  // namespace dlops::python
