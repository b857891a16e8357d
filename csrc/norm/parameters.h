// The parameter tensors of one norm call.
#pragma once
#include "../torch/face.h"

namespace dlops::face {

// Parameters (weight, bias, scale, shift) of one kernel call share one dtype: that of the input, or float32, to which the
// others are then converted. Holds the copies until the call is over.
class Parameters {
 public:
  Parameters(const char* op, const Tensor& input)
      : dtype(dtype_of(op, "input", input)), op_(op), input_(input) {}
  // shape: what the argument must have.
  void add(const char* argument, const OptionalTensor& t, const std::vector<int64_t>& shape) {
    all_.push_back(t);
    if (!t) return;
    bool fits = t->dim() == static_cast<int64_t>(shape.size());
    for (size_t i = 0; fits && i < shape.size(); i++) fits = t->size(static_cast<int64_t>(i)) == shape[i];
    if (!fits) {
      std::string expected;
      for (int64_t s : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(s);
      refuse(op_, argument, " has shape ", shape_of(*t), ", expected [", expected, "]");
    }
    check_device(op_, argument, *t, input_);
    const Dtype own = dtype_of(op_, argument, *t);
    if (own != Dtype::f32 && own != dtype_of(op_, "input", input_))
      refuse(op_, argument, " must be float32 or of input's dtype ",
             torch::headeronly::toString(input_.scalar_type()), ": got ",
             torch::headeronly::toString(t->scalar_type()));
    if (own == Dtype::f32) dtype = Dtype::f32;
  }
  // Valid after all add().
  const void* pointer(size_t i) {
    if (!all_[i]) return nullptr;
    if (dtype == Dtype::f32 && all_[i]->scalar_type() != ScalarType::Float)
      all_[i] = torch::stable::to(*all_[i], ScalarType::Float);
    all_[i] = face::contiguous(*all_[i]);
    return data(all_[i]);
  }

  Dtype dtype;

 private:
  const char* op_;
  const Tensor& input_;
  std::vector<OptionalTensor> all_;
};

}  // namespace dlops::face
