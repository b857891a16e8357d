// What every family's ops.cpp needs from torch, on the LibTorch stable ABI: checks that name the op and the argument, the
// dtype mapping, contiguous copies, the current stream. With TORCH_TARGET_VERSION set, an ATen or c10 header here is an
// #error, so the layering checks itself.
//
// std::invalid_argument becomes ValueError in Python.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../dtype.h"

namespace dlops::face {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// refuse("diffusion_step", "seeds must have one entry per sample: got ", 3, ", expected ", 4)
template <class... Parts>
[[noreturn]] void refuse(const char* op, Parts&&... parts) {
  std::ostringstream s;
  s << op << ": ";
  (s << ... << parts);
  throw std::invalid_argument(s.str());
}

inline std::string shape_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); i++) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline std::string device_of(const Tensor& t) {
  return t.is_cpu() ? "cpu" : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  auto x = a.sizes(), y = b.sizes();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

inline Dtype dtype_of(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::BFloat16: return Dtype::bf16;
    default:
      refuse(op, argument, " must be float32, float16 or bfloat16: got ",
             torch::headeronly::toString(t.scalar_type()));
  }
}

inline void check_device(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  if (!same_device(t, like)) refuse(op, argument, " is on ", device_of(t), ", expected ", device_of(like));
}

inline void check_dtype(const char* op, const char* argument, const Tensor& t, ScalarType type) {
  if (t.scalar_type() != type)
    refuse(op, argument, " must be ", torch::headeronly::toString(type), ": got ",
           torch::headeronly::toString(t.scalar_type()));
}

inline void check_like(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  if (!same_shape(t, like)) refuse(op, argument, " has shape ", shape_of(t), ", expected ", shape_of(like));
  check_dtype(op, argument, t, like.scalar_type());
  check_device(op, argument, t, like);
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  auto sizes = a.sizes(), x = a.strides(), y = b.strides();
  for (size_t i = 0; i < sizes.size(); i++)
    if (sizes[i] > 1 && x[i] != y[i]) return false;
  return true;
}

// Every element once, no gaps: the dimensions, ordered by stride, multiply up.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t i = 0; i < t.dim(); i++)
    if (t.size(i) > 1) dims.emplace_back(t.stride(i), t.size(i));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline Tensor contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// An uninitialised tensor with the sizes, strides, dtype and device of a dense one. It calls at::empty_strided straight
// through the C shim: the stable ABI's empty_like goes through the dispatcher by name, which costs twice as much.
inline Tensor empty_like(const Tensor& t) {
  int32_t device_type, dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(t.dim(), t.sizes().data(), t.strides().data(), dtype,
                                                         device_type, t.get_device_index(), &made));
  return Tensor(made);
}

inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// The stream that torch's ops run on now, for t's device. The symbol lives in torch's CUDA library and is weak here, so
// that this file loads where that library is absent.
void* current_stream(const Tensor& t);

// Errors of a launcher: 0 is none.
void check_launch(const char* op, int error);

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace dlops::face
