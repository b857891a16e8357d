// The arguments that the recurrence and its backward pass share: checked, laid out as the kernels want them, and written into
// the problem struct.
#pragma once
#include "../emulation.h"
#include "../torch/empty.h"
#include "params.h"

namespace dlops::lstm {

using face::check_device;
using face::check_dtype;
using face::OptionalTensor;
using face::refuse;
using face::ScalarType;
using face::shape_of;
using face::Tensor;
using Sizes = std::vector<int64_t>;

inline std::string text_of(const Sizes& sizes) {
  std::string s = "[";
  for (size_t i = 0; i < sizes.size(); i++) s += (i ? ", " : "") + std::to_string(sizes[i]);
  return s + "]";
}

template <int count>
int index_of(const char* op, const char* what, const char* const (&names)[count], const std::string& name) {
  std::string known;
  for (int i = 0; i < count; i++) {
    if (name == names[i]) return i;
    known += (i ? ", " : "") + std::string(names[i]);
  }
  refuse(op, "unknown ", what, " '", name, "': there are ", known);
}
inline Cell cell_of(const char* op, const std::string& name) {
  return static_cast<Cell>(index_of(op, "cell", kCellNames, name));
}

// Tensors of one call: made contiguous, and kept until it is over.
class Operands {
 public:
  Operands(const char* op, const Tensor& like) : op_(op), like_(like) {}

  // The data of a tensor of this shape and type on like's device; null where there is none.
  const void* take(const char* name, const OptionalTensor& t, const Sizes& shape, ScalarType type) {
    if (!t) return nullptr;
    check_device(op_, name, *t, like_);
    check_dtype(op_, name, *t, type);
    const auto sizes = t->sizes();
    if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
      refuse(op_, name, " has shape ", shape_of(*t), ", expected ", text_of(shape));
    kept_.push_back(face::contiguous(*t));
    return kept_.back().const_data_ptr();
  }
  template <class T>
  const T* take(const char* name, const OptionalTensor& t, const Sizes& shape) {
    constexpr ScalarType type = sizeof(T) == 1   ? ScalarType::Bool
                                : sizeof(T) == 8 ? ScalarType::Long
                                                 : ScalarType::Float;
    return static_cast<const T*>(take(name, t, shape, type));
  }

 private:
  const char* op_;
  const Tensor& like_;
  std::vector<Tensor> kept_;
};

// What a call says apart from its main tensors; the same for both passes.
struct Options {
  OptionalTensor norm_weight, cell_weight, cell_bias, dropout, reset, keep_h, keep_c, lengths, offsets;
  std::string cell;
  bool reverse, batch_first;
  double zoneout_h, zoneout_c, eps;
};

// Packed rows: the first samples are the longest, and step t has offsets[t + 1] - offsets[t] of them.
inline void check_packed(const char* op, const RecurrenceProblem& p) {
  int64_t active = p.batch, at = 0;
  for (int64_t b = 1; b < p.batch; b++)
    if (p.lengths[b] > p.lengths[b - 1]) refuse(op, "lengths of a packed sequence must not increase");
  for (int64_t t = 0; t < p.steps; t++) {
    while (active > 0 && p.lengths[active - 1] <= t) active--;
    if (p.offsets[t] != at)
      refuse(op, "offsets[", t, "] of a packed sequence must be ", at, ": got ", p.offsets[t]);
    at += active;
  }
  if (at != p.rows) refuse(op, "the packed input has ", p.rows, " rows, but its lengths add up to ", at);
}

template <class Params>
void fill_zoneout(const char* op, Params& p, double h, double c) {
  for (double z : {h, c})
    if (!(z >= 0 && z < 1)) refuse(op, "zoneout must lie in [0, 1): got ", z);
  p.zoneout_h = static_cast<float>(h);
  p.zoneout_c = static_cast<float>(c);
}

// input: [T, B, width], [B, T, width] with batch_first, or packed [rows, width].
inline void fill(const char* op, RecurrenceProblem& p, Operands& operands, const Tensor& input,
                 const Tensor& w_hh, const Options& o) {
  p.cell = cell_of(op, o.cell);
  p.dtype = face::dtype_of(op, "w_hh", w_hh);
  if (w_hh.dim() != 2 || w_hh.size(0) % p.gates() || w_hh.size(0) == 0 || w_hh.size(1) == 0)
    refuse(op, "w_hh must be [", p.gates(), " H, P]: got shape ", shape_of(w_hh));
  p.hidden = w_hh.size(0) / p.gates();
  p.state = w_hh.size(1);
  if (p.state > p.hidden || (p.state < p.hidden && p.cell != Cell::lstm))
    refuse(op, "w_hh has shape ", shape_of(w_hh), ": only an lstm has a projection, to fewer values than H");
  if (input.dim() != (o.offsets ? 2 : 3))
    refuse(op, "input must be ", o.offsets ? "[rows, I], as it is packed" : "[T, B, I] or [B, T, I]",
           ": got shape ", shape_of(input));
  if (o.offsets && !o.lengths) refuse(op, "a packed input needs lengths");
  if (o.offsets) {
    p.steps = o.offsets->numel();
    p.batch = o.lengths->numel();
    p.rows = input.size(0);
  } else {
    p.steps = input.size(o.batch_first ? 1 : 0);
    p.batch = input.size(o.batch_first ? 0 : 1);
    p.rows = p.steps * p.batch;
    p.step_stride = o.batch_first ? 1 : p.batch;
    p.batch_stride = o.batch_first ? p.steps : 1;
  }
  p.reverse = o.reverse;
  p.lengths = operands.take<int64_t>("lengths", o.lengths, {p.batch});
  p.offsets = operands.take<int64_t>("offsets", o.offsets, {p.steps});
  if (input.is_cpu()) {
    for (int64_t b = 0; p.lengths && b < p.batch; b++)
      if (p.lengths[b] < 0 || p.lengths[b] > p.steps)
        refuse(op, "lengths[", b, "] must be between 0 and the ", p.steps, " steps: got ", p.lengths[b]);
    if (p.offsets) check_packed(op, p);
  }
  const int64_t g = p.gates() * p.hidden;
  auto rows_of = [&](int64_t width) {
    return o.offsets ? Sizes{p.rows, width} : Sizes{input.size(0), input.size(1), width};
  };
  p.reset = reinterpret_cast<const uint8_t*>(
      operands.take<bool>("reset", o.reset, o.offsets ? Sizes{p.rows} : Sizes{input.size(0), input.size(1)}));
  p.keep_h = reinterpret_cast<const uint8_t*>(operands.take<bool>("keep_h", o.keep_h, rows_of(p.state)));
  p.keep_c = reinterpret_cast<const uint8_t*>(operands.take<bool>("keep_c", o.keep_c, rows_of(p.hidden)));
  p.dropout = operands.take<float>("dropout", o.dropout, {p.batch, p.state});
  p.norm_weight = operands.take<float>("norm_weight", o.norm_weight, {g});
  p.cell_weight = operands.take<float>("cell_weight", o.cell_weight, {p.hidden});
  p.cell_bias = operands.take<float>("cell_bias", o.cell_bias, {p.hidden});
  if ((p.cell_weight || p.cell_bias) && (p.cell != Cell::lstm || !p.cell_weight || !p.cell_bias))
    refuse(op, "cell_weight and cell_bias go together, with an lstm");
  fill_zoneout(op, p, o.zoneout_h, o.zoneout_c);
  p.eps = static_cast<float>(o.eps);
}

// Like input but with rows of `width`.
inline Tensor new_rows(const Tensor& like, const Tensor& input, int64_t width, bool floats) {
  Sizes sizes(input.sizes().begin(), input.sizes().end()), strides(sizes.size(), 1);
  sizes.back() = width;
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  int32_t dtype = aoti_torch_dtype_float32();
  if (!floats) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return face::new_strided(like, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype);
}
// [rows, columns] of like's dtype.
inline Tensor new_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[2] = {rows, columns}, strides[2] = {std::max<int64_t>(columns, 1), 1};
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return face::new_strided(like, 2, sizes, strides, dtype);
}

inline float* floats(Tensor& t) { return t.numel() ? static_cast<float*>(t.mutable_data_ptr()) : nullptr; }

// Whether the CUDA kernels run: on a GPU or in the simt runner.
inline bool on_cuda(const Tensor& t) { return !t.is_cpu() || emulated("lstm"); }

}  // namespace dlops::lstm
