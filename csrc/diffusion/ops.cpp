// The torch face of the diffusion family: schemas, every check, parameters, and the call of a CPU or CUDA table.
#include "../cpu/isa.h"
#include "../torch/dispatch.h"
#include "cpu.h"
#include "launch.h"

namespace dlops {
namespace {

using namespace face;
using Tensors = std::vector<Tensor>;

constexpr auto kFamily = DLOPS_FAMILY(diffusion);

bool naive(const char* op, const std::string& variant, std::initializer_list<const char*> variants) {
  if (variant.empty()) return false;
  std::string known;
  for (const char* v : variants) {
    if (variant == v) return variant == "naive";
    known += std::string(known.empty() ? "" : ", ") + v;
  }
  refuse(op, "unknown variant '", variant, "': this device has ", known);
}

// Checks a latent-like argument list and puts it into one layout. All tensors go flat in memory order if they share a
// dense layout with the samples outermost; noise drawn by seeds is defined in C order, so it needs C order.
class Layout {
 public:
  Layout(const char* op, const Tensor& sample, bool c_order) : op_(op), sample_(sample), flat_(true) {
    dtype = dtype_of(op, "sample", sample);
    if (sample.dim() < 1) refuse(op, "sample must have a batch dimension: got shape []");
    samples = sample.size(0);
    elements = samples ? sample.numel() / samples : 0;
    bool batch_outermost = samples <= 1 || sample.stride(0) == elements;
    flat_ = c_order ? sample.is_contiguous() : batch_outermost && is_dense(sample);
  }
  void check(const char* argument, const Tensor& t) {
    check_like(op_, argument, t, sample_);
    if (!same_strides(t, sample_)) flat_ = false;
  }
  void check(const char* argument, const OptionalTensor& t) {
    if (t) check(argument, *t);
  }
  // Valid after all checks.
  Tensor arrange(const Tensor& t) const { return flat_ ? t : face::contiguous(t); }
  OptionalTensor arrange(const OptionalTensor& t) const { return t ? OptionalTensor(arrange(*t)) : t; }
  Tensor new_output() const { return face::empty_like(arrange(sample_)); }
  bool empty() const { return samples == 0 || elements == 0; }

  // An output of the caller's: same shape and dtype, in the layout of the inputs, and not half over one of them.
  void check_out(const char* argument, const Tensor& t) const {
    check_like(op_, argument, t, sample_);
    if (!(flat_ ? same_strides(t, sample_) : t.is_contiguous()))
      refuse(op_, argument, " must have the memory layout of the inputs");
  }

  int64_t samples, elements;
  Dtype dtype;

 private:
  const char* op_;
  const Tensor& sample_;
  bool flat_;
};

// A write that lands in the middle of an input would be read by a later element.
void check_overlap(const char* op, const char* argument, const Tensor& out, const Tensor& in) {
  auto a = static_cast<const char*>(out.const_data_ptr()), b = static_cast<const char*>(in.const_data_ptr());
  int64_t bytes = out.numel() * bytes_of(dtype_of(op, argument, out));
  if (a != b && a < b + bytes && b < a + bytes)
    refuse(op, argument, " overlaps an input without being equal to it");
}

RowChoice choose_rows(const char* op, const Tensor& sample, const Tensor& table, int64_t columns,
                      const OptionalTensor& rows, int64_t row) {
  check_dtype(op, "table", table, ScalarType::Float);
  check_device(op, "table", table, sample);
  if (table.dim() != 2 || table.size(1) != columns || table.size(0) < 1 || !table.is_contiguous())
    refuse(op, "table must be a contiguous [rows >= 1, ", columns, "] tensor: got shape ", shape_of(table));
  RowChoice c{static_cast<const float*>(table.const_data_ptr()), table.size(0), nullptr, 0, row};
  if (rows) {
    check_dtype(op, "row", *rows, ScalarType::Long);
    check_device(op, "row", *rows, sample);
    int64_t n = rows->numel(), samples = sample.size(0);
    if (rows->dim() > 1 || (n != 1 && n != samples) || !rows->is_contiguous())
      refuse(op, "row must be an integer, or a contiguous int64 tensor with 1 or ", samples,
             " entries: got shape ", shape_of(*rows));
    c.rows = static_cast<const int64_t*>(rows->const_data_ptr());
    c.row_stride = n == 1 ? 0 : 1;
  } else if (row < 0 || row >= table.size(0)) {
    refuse(op, "row ", row, " is outside the table's ", table.size(0), " rows");
  }
  return c;
}

const int64_t* check_seeds(const char* op, const OptionalTensor& seeds, const Tensor& like, int64_t samples) {
  if (!seeds) return nullptr;
  check_dtype(op, "seeds", *seeds, ScalarType::Long);
  check_device(op, "seeds", *seeds, like);
  if (seeds->dim() != 1 || seeds->numel() != samples)
    refuse(op, "seeds must have one entry per sample: got shape ", shape_of(*seeds), ", expected [", samples,
           "]");
  if (!seeds->is_contiguous()) refuse(op, "seeds must be contiguous");
  return static_cast<const int64_t*>(seeds->const_data_ptr());
}

void run_step(const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond,
              const Tensors& history, const OptionalTensor& noise, const OptionalTensor& seeds,
              const Tensor& table, const OptionalTensor& rows, int64_t row, double guidance, double rescale,
              double threshold_ratio, double threshold_max, const std::string& variant, OptionalTensor& prev,
              OptionalTensor& x0, bool want_x0) {
  const char* op = "diffusion_step";
  const bool slow = naive(op, variant, {"naive", "fused"});
  Layout layout(op, sample, static_cast<bool>(seeds));
  layout.check("model_output", model_output);
  layout.check("uncond", uncond);
  layout.check("noise", noise);
  if (history.size() > 3) refuse(op, "history holds at most 3 tensors: got ", history.size());
  for (const Tensor& h : history) layout.check("history", h);
  if (noise && seeds) refuse(op, "give noise or seeds, not both");
  if (!(rescale >= 0)) refuse(op, "rescale must be >= 0: got ", rescale);
  if (!(threshold_ratio >= 0 && threshold_ratio <= 1))
    refuse(op, "threshold_ratio must be in [0, 1]: got ", threshold_ratio);

  StepParams p{};
  p.rows = choose_rows(op, sample, table, kStepColumns, rows, row);
  p.seeds = check_seeds(op, seeds, sample, layout.samples);
  if (prev) {
    layout.check_out("out", *prev);
    for (const Tensor* in : {&sample, &model_output}) check_overlap(op, "out", *prev, *in);
  } else {
    prev = layout.new_output();
  }
  if (x0) layout.check_out("out_x0", *x0);
  if (!x0 && want_x0) x0 = layout.new_output();
  if (layout.empty()) return;

  // Copies, if any were needed, live until the launch.
  Tensor sample_ = layout.arrange(sample), model_ = layout.arrange(model_output);
  OptionalTensor uncond_ = layout.arrange(uncond), noise_ = layout.arrange(noise);
  Tensors history_;
  for (size_t i = 0; i < history.size(); i++) {
    history_.push_back(layout.arrange(history[i]));
    p.history[i] = history_.back().const_data_ptr();
  }
  p.sample = sample_.const_data_ptr();
  p.model = model_.const_data_ptr();
  p.uncond = data(uncond_);
  p.noise = data(noise_);
  p.guidance = static_cast<float>(guidance);
  p.prev = prev->mutable_data_ptr();
  p.x0 = x0 ? x0->mutable_data_ptr() : nullptr;
  p.samples = layout.samples;
  p.elements = layout.elements;
  p.dtype = layout.dtype;

  OptionalTensor scale;
  if (rescale > 0 || threshold_ratio > 0) {
    scale = torch::stable::new_empty(sample, {layout.samples, 2}, ScalarType::Float);
    StepReduceParams r{p.sample,
                       p.model,
                       p.uncond,
                       p.rows,
                       p.guidance,
                       static_cast<float>(rescale),
                       static_cast<float>(threshold_ratio),
                       static_cast<float>(threshold_max),
                       static_cast<float*>(scale->mutable_data_ptr()),
                       p.samples,
                       p.elements,
                       p.dtype,
                       0};
    p.scale = r.scale;
    run(op, kFamily, sample, r, [](const auto& table) { return table.step_reduce; });
  }
  run(op, kFamily, sample, p, [&](const auto& table) { return slow ? table.step_naive : table.step; });
}

Tensors step(const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond,
             const Tensors& history, const OptionalTensor& noise, const OptionalTensor& seeds,
             const Tensor& table, const OptionalTensor& rows, int64_t row, double guidance, double rescale,
             double threshold_ratio, double threshold_max, bool return_x0, const std::string& variant) {
  OptionalTensor prev, x0;
  run_step(sample, model_output, uncond, history, noise, seeds, table, rows, row, guidance, rescale,
           threshold_ratio, threshold_max, variant, prev, x0, return_x0);
  Tensors out{*prev};
  if (x0) out.push_back(*x0);
  return out;
}

void step_out(Tensor sample, Tensor model_output, OptionalTensor uncond, Tensors history,
              OptionalTensor noise, OptionalTensor seeds, Tensor table, OptionalTensor rows, int64_t row,
              double guidance, double rescale, double threshold_ratio, double threshold_max,
              std::string variant, Tensor out, OptionalTensor out_x0) {
  OptionalTensor prev(out);
  run_step(sample, model_output, uncond, history, noise, seeds, table, rows, row, guidance, rescale,
           threshold_ratio, threshold_max, variant, prev, out_x0, false);
}

Tensor add_noise(Tensor sample, OptionalTensor noise, OptionalTensor seeds, Tensor table, OptionalTensor rows,
                 int64_t row, int64_t step) {
  const char* op = "add_noise";
  Layout layout(op, sample, static_cast<bool>(seeds));
  layout.check("noise", noise);
  if (noise.has_value() == seeds.has_value()) refuse(op, "give exactly one of noise and seeds");
  AddNoiseParams p{};
  p.rows = choose_rows(op, sample, table, 2, rows, row);
  p.seeds = check_seeds(op, seeds, sample, layout.samples);
  Tensor out = layout.new_output();
  if (layout.empty()) return out;
  Tensor sample_ = layout.arrange(sample);
  OptionalTensor noise_ = layout.arrange(noise);
  p.sample = sample_.const_data_ptr();
  p.noise = data(noise_);
  p.step = static_cast<int32_t>(step);
  p.out = out.mutable_data_ptr();
  p.samples = layout.samples;
  p.elements = layout.elements;
  p.dtype = layout.dtype;
  run(op, kFamily, sample, p, [](const auto& table) { return table.add_noise; });
  return out;
}

// Fills `out` [N, ...]; the Python face allocates it.
void randn(Tensor out, Tensor seeds, int64_t step, std::string variant) {
  const char* op = "randn";
  const bool slow = naive(op, variant, {"naive", "fused"});
  Layout layout(op, out, true);
  if (!out.is_contiguous()) refuse(op, "out must be contiguous");
  RandnParams p{check_seeds(op, seeds, out, layout.samples),
                static_cast<int32_t>(step),
                out.mutable_data_ptr(),
                layout.samples,
                layout.elements,
                layout.dtype,
                0};
  if (layout.empty()) return;
  run(op, kFamily, out, p, [&](const auto& table) { return slow ? table.randn_naive : table.randn; });
}

const bool registered = [] {
  for (const DiffusionCpu* t : DLOPS_ALL(diffusion)) add_kernels(t->kernels, t->kernel_count);
#if DLOPS_WITH_CUDA
  add_kernels(diffusion_cuda.kernels, diffusion_cuda.kernel_count);
#endif
  return true;
}();

}  // namespace

const DiffusionCpu& diffusion_cpu() { return DLOPS_CHOOSE(diffusion); }

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def(
      "diffusion_step(Tensor sample, Tensor model_output, Tensor? uncond, Tensor[] history, Tensor? noise, "
      "Tensor? seeds, "
      "Tensor table, Tensor? rows, int row, float guidance, float rescale, float threshold_ratio, float "
      "threshold_max, "
      "bool return_x0, str variant) -> Tensor[]");
  m.def(
      "diffusion_step_out(Tensor sample, Tensor model_output, Tensor? uncond, Tensor[] history, Tensor? "
      "noise, "
      "Tensor? seeds, Tensor table, Tensor? rows, int row, float guidance, float rescale, float "
      "threshold_ratio, "
      "float threshold_max, str variant, Tensor(a!) out, Tensor(b!)? out_x0) -> ()");
  m.def(
      "add_noise(Tensor sample, Tensor? noise, Tensor? seeds, Tensor table, Tensor? rows, int row, int step) "
      "-> Tensor");
  m.def("randn(Tensor(a!) out, Tensor seeds, int step, str variant) -> ()");
}

#define DLOPS_DIFFUSION_IMPL(m)                       \
  m.impl("diffusion_step", TORCH_BOX(&step));         \
  m.impl("diffusion_step_out", TORCH_BOX(&step_out)); \
  m.impl("add_noise", TORCH_BOX(&add_noise));         \
  m.impl("randn", TORCH_BOX(&randn))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) { DLOPS_DIFFUSION_IMPL(m); }
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_DIFFUSION_IMPL(m); }
#endif

}  // namespace dlops
