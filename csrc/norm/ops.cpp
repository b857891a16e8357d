// The torch face of the norm family: schemas, every check, layouts, parameters, and the call of a CPU or CUDA table.
//
// Statistics come back as one float32 tensor, rstd first: [2, N, G] for group_norm, [2, rows] for LayerNorm, [1, rows] for
// RMSNorm, which has no mean.
#include "../cpu/isa.h"
#include "../torch/dispatch.h"
#include "cpu.h"
#include "launch.h"
#include "parameters.h"

namespace dlops {
namespace {

using namespace face;
using Tensors = std::vector<Tensor>;

constexpr auto kFamily = DLOPS_FAMILY(norm);

bool is_naive(const char* op, const std::string& variant) {
  if (variant == "naive") return true;
  if (variant.empty() || variant == "fused") return false;
  refuse(op, "unknown variant '", variant, "': this device has naive, fused");
}

float* floats(const OptionalTensor& t) { return t ? static_cast<float*>(t->mutable_data_ptr()) : nullptr; }

// ---- GroupNorm ----

// [N, C, ...] in memory order N, spatial, C.
bool is_channels_last(const Tensor& t) {
  int64_t expected = t.size(1);
  if (expected > 1 && t.stride(1) != 1) return false;
  for (int64_t i = t.dim() - 1; i >= 2; i--) {
    if (t.size(i) > 1 && t.stride(i) != expected) return false;
    expected *= t.size(i);
  }
  return t.size(0) <= 1 || t.stride(0) == expected;
}

struct GroupLayout {
  GroupLayout(const char* op, const Tensor& t, int64_t groups) {
    if (t.dim() < 2) refuse(op, "input must be [N, C, ...]: got shape ", shape_of(t));
    n = t.size(0);
    c = t.size(1);
    hw = 1;
    for (int64_t i = 2; i < t.dim(); i++) hw *= t.size(i);
    if (groups < 1 || c % groups)
      refuse(op, "num_groups must divide the ", c, " channels of input: got ", groups);
    channels_last = !t.is_contiguous() && is_channels_last(t);
  }
  template <class Params>
  void fill(Params& p, int64_t groups) const {
    p.n = n;
    p.c = c;
    p.hw = hw;
    p.groups = groups;
    p.channels_last = channels_last;
  }
  int64_t n, c, hw;
  bool channels_last;
};

Tensor arrange(const GroupLayout& layout, const Tensor& t) {
  return layout.channels_last ? t : face::contiguous(t);
}

// `t` in the memory order of `like`.
Tensor arrange_like(const Tensor& like, const Tensor& t) {
  if (same_strides(t, like)) return t;
  Tensor copy = new_like(like);
  return torch::stable::copy_(copy, t);
}

void add_group_parameters(Parameters& all, const GroupLayout& l, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& scale,
                          const OptionalTensor& shift) {
  all.add("weight", weight, {l.c});
  all.add("bias", bias, {l.c});
  all.add("scale", scale, {l.n, l.c});
  all.add("shift", shift, {l.n, l.c});
}

Tensor run_group_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& shift, int64_t groups, double eps,
                      bool silu, const std::string& variant, OptionalTensor& y) {
  const char* op = "group_norm";
  const bool slow = is_naive(op, variant);
  GroupNormParams p{};
  p.dtype = dtype_of(op, "input", x);
  const GroupLayout layout(op, x, groups);
  Parameters parameters(op, x);
  add_group_parameters(parameters, layout, weight, bias, scale, shift);
  const Tensor x_ = arrange(layout, x);
  if (y) {
    check_like(op, "out", *y, x);
    if (!same_strides(*y, x_)) refuse(op, "out must have the memory layout of input");
  } else {
    y = new_like(x_);
  }
  Tensor stats = new_floats(x, {2, layout.n, groups});
  if (x.numel() == 0) return torch::stable::zero_(stats);
  layout.fill(p, groups);
  p.x = x_.const_data_ptr();
  p.weight = parameters.pointer(0);
  p.bias = parameters.pointer(1);
  p.scale = parameters.pointer(2);
  p.shift = parameters.pointer(3);
  p.param_dtype = parameters.dtype;
  p.y = y->mutable_data_ptr();
  p.rstd = static_cast<float*>(stats.mutable_data_ptr());
  p.mean = p.rstd + layout.n * groups;
  p.eps = static_cast<float>(eps);
  p.silu = silu;
  run(op, kFamily, x, p, [&](const auto& table) { return slow ? table.group_norm_naive : table.group_norm; });
  return stats;
}

std::tuple<Tensor, Tensor> group_norm(Tensor x, OptionalTensor weight, OptionalTensor bias,
                                      OptionalTensor scale, OptionalTensor shift, int64_t groups, double eps,
                                      bool silu, std::string variant) {
  OptionalTensor y;
  Tensor stats = run_group_norm(x, weight, bias, scale, shift, groups, eps, silu, variant, y);
  return {*y, stats};
}

void group_norm_out(Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor scale,
                    OptionalTensor shift, int64_t groups, double eps, bool silu, std::string variant,
                    Tensor out) {
  OptionalTensor y(out);
  run_group_norm(x, weight, bias, scale, shift, groups, eps, silu, variant, y);
}

// needs: five flags, dx first. Returns the gradients asked for, in that order.
Tensors group_norm_backward(Tensor dy, Tensor x, OptionalTensor weight, OptionalTensor bias,
                            OptionalTensor scale, OptionalTensor shift, Tensor stats, int64_t groups,
                            bool silu, std::vector<int64_t> needs, std::string variant) {
  const char* op = "group_norm_backward";
  const bool slow = is_naive(op, variant);
  if (needs.size() != 5) refuse(op, "needs must have 5 flags: got ", needs.size());
  GroupNormBackwardParams p{};
  p.dtype = dtype_of(op, "input", x);
  check_like(op, "grad", dy, x);
  const GroupLayout layout(op, x, groups);
  Parameters parameters(op, x);
  add_group_parameters(parameters, layout, weight, bias, scale, shift);
  check_dtype(op, "stats", stats, ScalarType::Float);
  check_device(op, "stats", stats, x);
  if (stats.numel() != 2 * layout.n * groups) refuse(op, "stats has shape ", shape_of(stats));
  const Tensor x_ = arrange(layout, x), dy_ = arrange_like(x_, dy), stats_ = face::contiguous(stats);

  OptionalTensor grads[5];
  if (needs[0]) grads[0] = new_like(x_);
  for (int i = 1; i < 5; i++) {
    if (!needs[i]) continue;
    const std::vector<int64_t> shape =
        i < 3 ? std::vector<int64_t>{layout.c} : std::vector<int64_t>{layout.n, layout.c};
    grads[i] = new_floats(x, shape);
  }
  if (x.numel() == 0) {
    for (int i = 1; i < 5; i++)
      if (grads[i]) torch::stable::zero_(*grads[i]);
  } else {
    layout.fill(p, groups);
    p.dy = dy_.const_data_ptr();
    p.x = x_.const_data_ptr();
    p.weight = parameters.pointer(0);
    p.bias = parameters.pointer(1);
    p.scale = parameters.pointer(2);
    p.shift = parameters.pointer(3);
    p.param_dtype = parameters.dtype;
    p.rstd = static_cast<const float*>(stats_.const_data_ptr());
    p.mean = p.rstd + layout.n * groups;
    p.dx = grads[0] ? grads[0]->mutable_data_ptr() : nullptr;
    p.dweight = floats(grads[1]);
    p.dbias = floats(grads[2]);
    p.dscale = floats(grads[3]);
    p.dshift = floats(grads[4]);
    p.silu = silu;
    run(op, kFamily, x, p, [&](const auto& table) {
      return slow ? table.group_norm_backward_naive : table.group_norm_backward;
    });
  }
  Tensors out;
  for (OptionalTensor& g : grads)
    if (g) out.push_back(*g);
  return out;
}

// ---- LayerNorm and RMSNorm: the last `dims` dimensions are normalised ----

struct RowLayout {
  RowLayout(const char* op, const Tensor& t, int64_t dims) : rows(1), d(1) {
    if (dims < 1 || dims > t.dim())
      refuse(op, "normalized_shape must have 1 to ", t.dim(), " dimensions: got ", dims);
    for (int64_t i = 0; i < t.dim(); i++) (i < t.dim() - dims ? rows : d) *= t.size(i);
    for (int64_t i = t.dim() - dims; i < t.dim(); i++) shape.push_back(t.size(i));
  }
  int64_t rows, d;
  std::vector<int64_t> shape;  // normalized_shape
};

// Returns the statistics; y, and with a residual x + residual, are made here.
Tensor run_row_norm(const Tensor& x, const OptionalTensor& residual, const OptionalTensor& weight,
                    const OptionalTensor& bias, int64_t dims, double eps, bool rms,
                    const std::string& variant, OptionalTensor& y, OptionalTensor& sum) {
  const char* op = rms ? "rms_norm" : "layer_norm";
  const bool slow = is_naive(op, variant);
  RowNormParams p{};
  p.dtype = dtype_of(op, "input", x);
  const RowLayout layout(op, x, dims);
  if (residual) check_like(op, "residual", *residual, x);
  if (rms && bias) refuse(op, "bias must be absent");
  Parameters parameters(op, x);
  parameters.add("weight", weight, layout.shape);
  parameters.add("bias", bias, layout.shape);
  const Tensor x_ = face::contiguous(x);
  OptionalTensor residual_;
  if (residual) residual_ = face::contiguous(*residual);
  y = new_like(x_);
  if (residual) sum = new_like(x_);
  Tensor stats = new_floats(x, {rms ? 1 : 2, layout.rows});
  if (x.numel() == 0) return torch::stable::zero_(stats);
  p.x = x_.const_data_ptr();
  p.residual = data(residual_);
  p.weight = parameters.pointer(0);
  p.bias = parameters.pointer(1);
  p.param_dtype = parameters.dtype;
  p.y = y->mutable_data_ptr();
  p.sum = sum ? sum->mutable_data_ptr() : nullptr;
  p.rstd = static_cast<float*>(stats.mutable_data_ptr());
  p.mean = rms ? nullptr : p.rstd + layout.rows;
  p.rows = layout.rows;
  p.d = layout.d;
  p.eps = static_cast<float>(eps);
  p.rms = rms;
  run(op, kFamily, x, p, [&](const auto& table) { return slow ? table.row_norm_naive : table.row_norm; });
  return stats;
}

std::tuple<Tensor, Tensor> row_norm(Tensor x, OptionalTensor weight, OptionalTensor bias, int64_t dims,
                                    double eps, bool rms, std::string variant) {
  OptionalTensor y, sum;
  Tensor stats = run_row_norm(x, std::nullopt, weight, bias, dims, eps, rms, variant, y, sum);
  return {*y, stats};
}

std::tuple<Tensor, Tensor, Tensor> add_row_norm(Tensor x, Tensor residual, OptionalTensor weight,
                                                OptionalTensor bias, int64_t dims, double eps, bool rms,
                                                std::string variant) {
  OptionalTensor y, sum;
  Tensor stats = run_row_norm(x, residual, weight, bias, dims, eps, rms, variant, y, sum);
  return {*y, stats, *sum};
}

// needs: dx, dweight, dbias. Returns the gradients asked for, in that order.
Tensors row_norm_backward(Tensor dy, OptionalTensor dsum, Tensor s, OptionalTensor weight, Tensor stats,
                          int64_t dims, bool rms, std::vector<int64_t> needs, std::string variant) {
  const char* op = rms ? "rms_norm_backward" : "layer_norm_backward";
  const bool slow = is_naive(op, variant);
  if (needs.size() != 3) refuse(op, "needs must have 3 flags: got ", needs.size());
  RowNormBackwardParams p{};
  p.dtype = dtype_of(op, "input", s);
  const RowLayout layout(op, s, dims);
  check_like(op, "grad", dy, s);
  if (dsum) check_like(op, "grad of the sum", *dsum, s);
  Parameters parameters(op, s);
  parameters.add("weight", weight, layout.shape);
  check_dtype(op, "stats", stats, ScalarType::Float);
  check_device(op, "stats", stats, s);
  if (stats.numel() != (rms ? 1 : 2) * layout.rows) refuse(op, "stats has shape ", shape_of(stats));
  const Tensor s_ = face::contiguous(s), dy_ = face::contiguous(dy), stats_ = face::contiguous(stats);
  OptionalTensor dsum_;
  if (dsum) dsum_ = face::contiguous(*dsum);

  OptionalTensor grads[3];
  if (needs[0]) grads[0] = new_like(s_);
  for (int i = 1; i < 3; i++)
    if (needs[i]) grads[i] = new_floats(s, layout.shape);
  if (s.numel() == 0) {
    for (int i = 1; i < 3; i++)
      if (grads[i]) torch::stable::zero_(*grads[i]);
  } else {
    p.dy = dy_.const_data_ptr();
    p.dsum = data(dsum_);
    p.s = s_.const_data_ptr();
    p.weight = parameters.pointer(0);
    p.param_dtype = parameters.dtype;
    p.rstd = static_cast<const float*>(stats_.const_data_ptr());
    p.mean = rms ? nullptr : p.rstd + layout.rows;
    p.dx = grads[0] ? grads[0]->mutable_data_ptr() : nullptr;
    p.dweight = floats(grads[1]);
    p.dbias = floats(grads[2]);
    p.rows = layout.rows;
    p.d = layout.d;
    p.rms = rms;
    run(op, kFamily, s, p,
        [&](const auto& table) { return slow ? table.row_norm_backward_naive : table.row_norm_backward; });
  }
  Tensors out;
  for (OptionalTensor& g : grads)
    if (g) out.push_back(*g);
  return out;
}

const bool registered = [] {
  for (const NormCpu* t : DLOPS_ALL(norm)) add_kernels(t->kernels, t->kernel_count);
#if DLOPS_WITH_CUDA
  add_kernels(norm_cuda.kernels, norm_cuda.kernel_count);
#endif
  return true;
}();

}  // namespace

const NormCpu& norm_cpu() { return DLOPS_CHOOSE(norm); }

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def(
      "group_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, int groups, float "
      "eps, bool silu, "
      "str variant) -> (Tensor, Tensor)");
  m.def(
      "group_norm_out(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, int groups, "
      "float eps, "
      "bool silu, str variant, Tensor(a!) out) -> ()");
  m.def(
      "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "Tensor stats, "
      "int groups, bool silu, int[] needs, str variant) -> Tensor[]");
  m.def(
      "row_norm(Tensor x, Tensor? weight, Tensor? bias, int dims, float eps, bool rms, str variant) -> "
      "(Tensor, Tensor)");
  m.def(
      "add_row_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, int dims, float eps, bool rms, "
      "str variant) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "row_norm_backward(Tensor dy, Tensor? dsum, Tensor s, Tensor? weight, Tensor stats, int dims, bool "
      "rms, "
      "int[] needs, str variant) -> Tensor[]");
}

#define DLOPS_NORM_IMPL(m)                                        \
  m.impl("group_norm", TORCH_BOX(&group_norm));                   \
  m.impl("group_norm_out", TORCH_BOX(&group_norm_out));           \
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward)); \
  m.impl("row_norm", TORCH_BOX(&row_norm));                       \
  m.impl("add_row_norm", TORCH_BOX(&add_row_norm));               \
  m.impl("row_norm_backward", TORCH_BOX(&row_norm_backward))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) { DLOPS_NORM_IMPL(m); }
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_NORM_IMPL(m); }
#endif

}  // namespace dlops
