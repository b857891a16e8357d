// The arguments that every convolution op shares: checked, laid out as the kernels want them, and written into the problem
// struct.
#pragma once
#include "../torch/empty.h"
#include "params.h"

namespace dlops::conv {

using face::OptionalTensor;
using face::refuse;
using face::shape_of;
using face::Tensor;
using Sizes = std::vector<int64_t>;

// ---- layouts ----

// The strides of [N, C, ...] without gaps.
inline Sizes dense_strides(const Sizes& sizes, bool channels_last) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  Sizes strides(sizes.size());
  int64_t step = 1;
  auto place = [&](int64_t d) {
    strides[d] = step;
    step *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_last) place(1);
  for (int64_t d = dims - 1; d >= 2; d--) place(d);
  if (!channels_last) place(1);
  place(0);
  return strides;
}

inline Sizes sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline Tensor new_image(const Tensor& like, const Sizes& sizes, bool channels_last) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return face::new_strided(like, static_cast<int64_t>(sizes.size()), sizes.data(),
                           dense_strides(sizes, channels_last).data(), dtype);
}

inline bool is_dense(const Tensor& t, bool channels_last) {
  const Sizes sizes = sizes_of(t), strides = dense_strides(sizes, channels_last);
  for (size_t d = 0; d < sizes.size(); d++)
    if (sizes[d] > 1 && strides[d] != t.stride(static_cast<int64_t>(d))) return false;
  return true;
}

// `t` without gaps in the order asked for: itself, or a copy.
inline Tensor arrange(const Tensor& t, bool channels_last) {
  if (is_dense(t, channels_last)) return t;
  Tensor copy = new_image(t, sizes_of(t), channels_last);
  return torch::stable::copy_(copy, t);
}

// ---- the problem ----

// [kernel], [stride], ... have one entry per spatial dimension. `padding`: before and after each, in turn.
struct Geometry {
  const char* op;
  Sizes stride, padding, dilation;
  int64_t groups;

  int64_t before(size_t i) const { return padding[2 * i]; }
  int64_t after(size_t i) const { return padding[2 * i + 1]; }

  void check(size_t spatial) const {
    if (spatial < 1 || spatial > 3) refuse(op, "input must have 1 to 3 spatial dimensions: got ", spatial);
    check_list("stride", stride, spatial, 1);
    check_list("dilation", dilation, spatial, 1);
    check_list("padding", padding, 2 * spatial, 0);
    if (groups < 1) refuse(op, "groups must be positive: got ", groups);
  }

  // The size of the result along spatial dimension i.
  int64_t out(size_t i, int64_t in, int64_t kernel) const {
    const int64_t covered = dilation[i] * (kernel - 1) + 1, padded = in + before(i) + after(i);
    if (covered > padded)
      refuse(op, "the kernel covers ", covered, " elements of spatial dimension ", i, ", which has ", padded,
             " with its padding");
    return (padded - covered) / stride[i] + 1;
  }

  // Sizes [N, C, in...], [N, O, out...] and [O, C / groups, kernel...], which the caller has made agree.
  void fill(ConvProblem& p, const Sizes& x, const Sizes& y, const Sizes& w) const {
    p.batch = x[0];
    p.channels = x[1];
    p.filters = y[1];
    p.groups = groups;
    const size_t spatial = x.size() - 2, missing = 3 - spatial;
    for (size_t i = 0; i < 3; i++) {
      const bool present = i >= missing;
      const size_t j = i - missing;
      p.in[i] = present ? x[j + 2] : 1;
      p.out[i] = present ? y[j + 2] : 1;
      p.kernel[i] = present ? w[j + 2] : 1;
      p.stride[i] = present ? stride[j] : 1;
      p.dilation[i] = present ? dilation[j] : 1;
      p.padding[i] = present ? before(j) : 0;
    }
  }

  void check_weight(const Tensor& w, int64_t dims) const {
    if (w.dim() != dims)
      refuse(op, "weight must have ", dims, " dimensions, as input has: got shape ", shape_of(w));
    if (w.size(0) % groups)
      refuse(op, "groups must divide the ", w.size(0), " filters of weight: got ", groups);
    for (int64_t d = 2; d < dims; d++)
      if (w.size(d) < 1) refuse(op, "the kernel of weight is empty: got shape ", shape_of(w));
  }

 private:
  void check_list(const char* name, const Sizes& values, size_t count, int64_t least) const {
    if (values.size() != count) refuse(op, name, " must have ", count, " values: got ", values.size());
    for (int64_t v : values)
      if (v < least || v > INT32_MAX)
        refuse(op, name, " must be at least ", least, " and below 2^31: got ", v);
  }
};

// ---- names ----

template <size_t count>
int index_of(const char* op, const char* argument, const std::string& name,
             const char* const (&names)[count]) {
  for (size_t i = 0; i < count; i++)
    if (name == names[i]) return static_cast<int>(i);
  std::string known;
  for (const char* n : names) known += (known.empty() ? "" : ", ") + std::string(n);
  refuse(op, argument, " must be one of ", known, ": got '", name, "'");
}

inline Activation activation_of(const char* op, const std::string& name) {
  static const char* const names[] = {"none", "relu", "silu", "gelu", "tanh", "sigmoid"};
  return static_cast<Activation>(index_of(op, "activation", name, names));
}
inline PaddingMode padding_mode_of(const char* op, const std::string& name) {
  static const char* const names[] = {"zeros", "reflect", "replicate", "circular"};
  return static_cast<PaddingMode>(index_of(op, "padding_mode", name, names));
}
inline Algorithm algorithm_of(const char* op, const std::string& name) {
  return static_cast<Algorithm>(index_of(op, "algorithm", name, kAlgorithmNames));
}

// Bias and residual of a result with the sizes `result`; holds the copies it makes.
class Epilogue {
 public:
  Epilogue(const char* op, const OptionalTensor& bias, const OptionalTensor& residual,
           const std::string& activation, const Tensor& like, const Sizes& result, bool channels_last)
      : made_{nullptr, nullptr, activation_of(op, activation)} {
    if (bias) {
      face::check_device(op, "bias", *bias, like);
      face::check_dtype(op, "bias", *bias, like.scalar_type());
      if (bias->dim() != 1 || bias->size(0) != result[1])
        refuse(op, "bias has shape ", shape_of(*bias), ", expected [", result[1], "]");
      bias_ = face::contiguous(*bias);
      made_.bias = bias_->const_data_ptr();
    }
    if (residual) {
      face::check_device(op, "residual", *residual, like);
      face::check_dtype(op, "residual", *residual, like.scalar_type());
      if (sizes_of(*residual) != result)
        refuse(op, "residual has shape ", shape_of(*residual), ", which is not that of the result");
      residual_ = arrange(*residual, channels_last);
      made_.residual = residual_->const_data_ptr();
    }
  }
  const ConvEpilogue& get() const { return made_; }

 private:
  OptionalTensor bias_, residual_;
  ConvEpilogue made_;
};

}  // namespace dlops::conv
