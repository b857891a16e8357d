// The torch face of the convolution family: schemas, and the call of a CPU or CUDA table. The checks are in arguments.h.
#include "../cpu/isa.h"
#include "../torch/dispatch.h"
#include "arguments.h"
#include "cpu.h"
#include "launch.h"
#include "refuses.h"

namespace dlops {
namespace {

using namespace face;
using namespace conv;

constexpr auto kFamily = DLOPS_FAMILY(conv);

// The rungs of one pass.
template <class Table>
const auto& rungs(const Table& table, const ConvForwardParams&) {
  return table.forward;
}
template <class Table>
const auto& rungs(const Table& table, const ConvDataParams&) {
  return table.data;
}
template <class Table>
const auto& rungs(const Table& table, const ConvWeightParams&) {
  return table.weight;
}

// Why one of these rungs cannot take the problem; empty: it can.
template <class Kernel>
std::string refusal(const Kernel (&all)[kAlgorithms], Algorithm algorithm, const ConvProblem& p) {
  const Kernel& kernel = all[static_cast<int>(algorithm)];
  if (!kernel.run) {
    std::string known;
    for (int i = 0; i < kAlgorithms; i++)
      if (all[i].run) known += (known.empty() ? "" : ", ") + std::string(kAlgorithmNames[i]);
    return "is not there on this device, which has " + known;
  }
  const char* why = kernel.refuses(p);
  return why ? why : "";
}
template <class Table>
std::string refusal(const Table& table, ConvPass pass, Algorithm algorithm, const ConvProblem& p) {
  switch (pass) {
    case ConvPass::forward: return refusal(table.forward, algorithm, p);
    case ConvPass::data: return refusal(table.data, algorithm, p);
    default: return refusal(table.weight, algorithm, p);
  }
}

// The kernel that p.algorithm names, if it takes the problem.
template <class Table, class Params>
const auto& kernel_of(const char* op, const Table& table, const Params& p) {
  const auto& all = rungs(table, p);
  const std::string why = refusal(all, p.algorithm, p);
  const int wanted = static_cast<int>(p.algorithm);
  if (!why.empty()) refuse(op, "variant '", kAlgorithmNames[wanted], "' ", why);
  return all[wanted];
}

const float* kept_weight(const char* op, const Tensor& packed, const Tensor& like, int64_t floats) {
  check_device(op, "packed", packed, like);
  check_dtype(op, "packed", packed, ScalarType::Float);
  if (!packed.is_contiguous() || packed.numel() != floats)
    refuse(op, "packed has shape ", shape_of(packed), ", expected [", floats,
           "] as conv_pack makes it for this kernel");
  return static_cast<const float*>(packed.const_data_ptr());
}

// Runs the kernel on like's device. w: the weight, in any layout, or null for the weight pass; kept: what conv_pack made of it
// earlier, which the CPU kernels that pack take in its place.
template <class Params>
void run_conv(const char* op, const Tensor& like, Params& p, const Tensor* w = nullptr,
              const OptionalTensor& kept = std::nullopt) {
  OptionalTensor packed, in_order;
  run(op, kFamily, like, p, [&](const auto& table) {
    const auto& kernel = kernel_of(op, table, p);
    if constexpr (requires { p.w; }) {
      if constexpr (requires { kernel.pack; }) {
        if (kernel.pack && kept) {
          p.packed = kept_weight(op, *kept, like, kernel.packed_floats(p));
          return kernel.run;
        }
      }
      in_order = face::contiguous(*w);
      p.w = in_order->const_data_ptr();
      if constexpr (requires { kernel.pack; }) {
        if (kernel.pack) {
          packed = new_floats(like, {kernel.packed_floats(p)});
          float* to = static_cast<float*>(packed->mutable_data_ptr());
          kernel.pack(p, p.w, to);
          p.packed = to;
        }
      }
    }
    return kernel.run;
  });
}

void check_operand(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  check_device(op, name, t, like);
  check_dtype(op, name, t, like.scalar_type());
}

// ---- forward ----

struct Forward {
  Forward(const char* op, const Tensor& x, const Tensor& w, const Sizes& stride, const Sizes& padding,
          const Sizes& dilation, int64_t groups, bool channels_last)
      : geometry{op, stride, padding, dilation, groups}, sizes(sizes_of(x)), channels_last(channels_last) {
    if (x.dim() < 3 || x.dim() > 5)
      refuse(op, "input must be [N, C, ...] with 1 to 3 spatial dimensions: got shape ", shape_of(x));
    geometry.check(sizes.size() - 2);
    geometry.check_weight(w, x.dim());
    check_operand(op, "weight", w, x);
    if (x.size(1) != w.size(1) * groups)
      refuse(op, "input has ", x.size(1), " channels, but weight of shape ", shape_of(w), " with groups ",
             groups, " wants ", w.size(1) * groups);
    for (int64_t d = 2; d < x.dim(); d++) sizes[d] = geometry.out(d - 2, x.size(d), w.size(d));
    sizes[1] = w.size(0);
  }
  Geometry geometry;
  Sizes sizes;  // of the result
  bool channels_last;
};

void check_padding_mode(const char* op, const ConvProblem& p, const Geometry& g) {
  if (p.padding_mode == PaddingMode::zeros || p.padding_mode == PaddingMode::replicate) return;
  const bool reflect = p.padding_mode == PaddingMode::reflect;
  for (size_t i = 0; i < g.stride.size(); i++) {
    const int64_t in = p.in[3 - g.stride.size() + i], most = std::max(g.before(i), g.after(i));
    if (most > in - reflect)
      refuse(op, "padding must be ", reflect ? "less than" : "at most", " the size of the input, ", in,
             ", with padding_mode ", reflect ? "reflect" : "circular", ": got ", most);
  }
}

void forward_into(const char* op, const Forward& f, const Tensor& x, const Tensor& w,
                  const OptionalTensor& packed, const OptionalTensor& bias, const OptionalTensor& residual,
                  const std::string& padding_mode, const std::string& activation,
                  const std::string& algorithm, Tensor& y) {
  ConvForwardParams p{};
  p.dtype = dtype_of(op, "input", x);
  p.channels_last = f.channels_last;
  p.padding_mode = padding_mode_of(op, padding_mode);
  f.geometry.fill(p, sizes_of(x), f.sizes, sizes_of(w));
  check_padding_mode(op, p, f.geometry);
  const Epilogue epilogue(op, bias, residual, activation, x, f.sizes, f.channels_last);
  p.epilogue = epilogue.get();
  p.algorithm = algorithm_of(op, algorithm);
  if (y.numel() == 0) return;
  if (x.numel() == 0) refuse(op, "input is empty: got shape ", shape_of(x));
  const Tensor x_ = arrange(x, f.channels_last);
  p.x = x_.const_data_ptr();
  p.y = y.mutable_data_ptr();
  run_conv(op, x, p, &w, packed);
}

Tensor conv_forward(Tensor x, Tensor w, OptionalTensor packed, OptionalTensor bias, OptionalTensor residual,
                    Sizes stride, Sizes padding, Sizes dilation, int64_t groups, std::string padding_mode,
                    std::string activation, bool channels_last, std::string algorithm) {
  const Forward f("conv", x, w, stride, padding, dilation, groups, channels_last);
  Tensor y = new_image(x, f.sizes, f.channels_last);
  forward_into("conv", f, x, w, packed, bias, residual, padding_mode, activation, algorithm, y);
  return y;
}

void conv_forward_out(Tensor x, Tensor w, OptionalTensor packed, OptionalTensor bias, OptionalTensor residual,
                      Sizes stride, Sizes padding, Sizes dilation, int64_t groups, std::string padding_mode,
                      std::string activation, std::string algorithm, Tensor out) {
  const char* op = "conv";
  const Forward f(op, x, w, stride, padding, dilation, groups, !out.is_contiguous());
  check_operand(op, "out", out, x);
  if (sizes_of(out) != f.sizes)
    refuse(op, "out has shape ", shape_of(out), ", which is not that of the result");
  if (!is_dense(out, f.channels_last)) refuse(op, "out must be contiguous or channels_last");
  forward_into(op, f, x, w, packed, bias, residual, padding_mode, activation, algorithm, out);
}

// ---- the adjoint in x ----

Tensor conv_data(Tensor dy, Tensor w, OptionalTensor packed, OptionalTensor bias, OptionalTensor residual,
                 Sizes in_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                 std::string activation, bool channels_last, std::string algorithm) {
  const char* op = "conv_data";
  if (dy.dim() < 3 || dy.dim() > 5)
    refuse(op, "input must be [N, C, ...] with 1 to 3 spatial dimensions: got shape ", shape_of(dy));
  const Geometry g{op, stride, padding, dilation, groups};
  g.check(dy.dim() - 2);
  g.check_weight(w, dy.dim());
  check_operand(op, "weight", w, dy);
  if (dy.size(1) != w.size(0))
    refuse(op, "input has ", dy.size(1), " channels, but weight of shape ", shape_of(w), " wants ",
           w.size(0));
  if (static_cast<int64_t>(in_size.size()) != dy.dim() - 2)
    refuse(op, "in_size must have ", dy.dim() - 2, " values: got ", in_size.size());
  Sizes result{dy.size(0), w.size(1) * groups};
  for (int64_t s : in_size) {
    if (s < 0) refuse(op, "in_size must not be negative: got ", s);
    result.push_back(s);
  }
  Tensor dx = new_image(dy, result, channels_last);
  ConvDataParams p{};
  p.dtype = dtype_of(op, "input", dy);
  p.channels_last = channels_last;
  g.fill(p, result, sizes_of(dy), sizes_of(w));
  const Epilogue epilogue(op, bias, residual, activation, dy, result, channels_last);
  p.epilogue = epilogue.get();
  p.algorithm = algorithm_of(op, algorithm);
  if (dx.numel() == 0) return dx;
  if (dy.numel() == 0) refuse(op, "input is empty: got shape ", shape_of(dy));
  const Tensor dy_ = arrange(dy, channels_last);
  p.dy = dy_.const_data_ptr();
  p.dx = dx.mutable_data_ptr();
  run_conv(op, dy, p, &w, packed);
  return dx;
}

// ---- the adjoint in w ----

Tensor conv_weight(Tensor x, Tensor dy, Sizes kernel, Sizes stride, Sizes padding, Sizes dilation,
                   int64_t groups, bool channels_last, std::string algorithm) {
  const char* op = "conv_weight";
  if (x.dim() < 3 || x.dim() > 5)
    refuse(op, "input must be [N, C, ...] with 1 to 3 spatial dimensions: got shape ", shape_of(x));
  const Geometry g{op, stride, padding, dilation, groups};
  g.check(x.dim() - 2);
  check_operand(op, "grad", dy, x);
  if (dy.dim() != x.dim() || dy.size(0) != x.size(0))
    refuse(op, "grad has shape ", shape_of(dy), ", which does not fit input of shape ", shape_of(x));
  if (x.size(1) % groups || dy.size(1) % groups)
    refuse(op, "groups must divide ", x.size(1), " channels and ", dy.size(1), " filters: got ", groups);
  if (static_cast<int64_t>(kernel.size()) != x.dim() - 2)
    refuse(op, "kernel must have ", x.dim() - 2, " values: got ", kernel.size());
  Sizes w{dy.size(1), x.size(1) / groups};
  for (int64_t k : kernel) {
    if (k < 1) refuse(op, "kernel must be positive: got ", k);
    w.push_back(k);
  }
  Tensor dw = new_image(x, w, false);
  ConvWeightParams p{};
  p.dtype = dtype_of(op, "input", x);
  p.channels_last = channels_last;
  g.fill(p, sizes_of(x), sizes_of(dy), w);
  p.algorithm = algorithm_of(op, algorithm);
  if (dw.numel() == 0) return dw;
  if (x.numel() == 0 || dy.numel() == 0) return torch::stable::zero_(dw);
  const Tensor x_ = arrange(x, p.channels_last), dy_ = arrange(dy, p.channels_last);
  p.x = x_.const_data_ptr();
  p.dy = dy_.const_data_ptr();
  p.dw = dw.mutable_data_ptr();
  run_conv(op, x, p);
  return dw;
}

// ---- packed weights, for callers that keep them: CPU ----

// As the convolution `conv` (data: `conv_data`) of an image of in_size with this weight wants them, whatever the image. Empty
// where the algorithm packs nothing.
Tensor conv_pack(Tensor w, Sizes in_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                 bool data_pass, std::string algorithm) {
  const char* op = "conv_pack";
  if (w.dim() < 3 || w.dim() > 5)
    refuse(op, "weight must be [O, C, ...] with 1 to 3 spatial dimensions: got shape ", shape_of(w));
  const Geometry g{op, stride, padding, dilation, groups};
  g.check(w.dim() - 2);
  g.check_weight(w, w.dim());
  if (static_cast<int64_t>(in_size.size()) != w.dim() - 2)
    refuse(op, "in_size must have ", w.dim() - 2, " values: got ", in_size.size());
  Sizes x{1, w.size(1) * groups}, y{1, w.size(0)};
  for (int64_t i = 0; i < w.dim() - 2; i++) {
    x.push_back(in_size[i]);
    y.push_back(g.out(i, in_size[i], w.size(i + 2)));
  }
  ConvProblem p{};
  p.dtype = dtype_of(op, "weight", w);
  p.threads = 1;
  g.fill(p, x, y, sizes_of(w));
  const Algorithm wanted = algorithm_of(op, algorithm);
  const ConvCpu& table = conv_cpu();
  const std::string why = refusal(table, data_pass ? ConvPass::data : ConvPass::forward, wanted, p);
  if (!why.empty()) refuse(op, "variant '", algorithm, "' ", why);
  const int which = static_cast<int>(wanted);
  const auto floats = data_pass ? table.data[which].packed_floats : table.forward[which].packed_floats;
  const auto pack = data_pass ? table.data[which].pack : table.forward[which].pack;
  if (!pack) return new_floats(w, {0});
  const Tensor w_ = face::contiguous(w);
  Tensor packed = new_floats(w, {floats(p)});
  pack(p, w_.const_data_ptr(), static_cast<float*>(packed.mutable_data_ptr()));
  return packed;
}

const bool registered = [] {
  for (const ConvCpu* t : DLOPS_ALL(conv)) add_kernels(t->kernels, t->kernel_count);
#if DLOPS_WITH_CUDA
  add_kernels(conv_cuda.kernels, conv_cuda.kernel_count);
#endif
  return true;
}();

}  // namespace

const ConvCpu& conv_cpu() { return DLOPS_CHOOSE(conv); }

std::string conv_refuses(bool cuda, ConvPass pass, const std::string& algorithm, const ConvProblem& p) {
  const Algorithm wanted = algorithm_of("conv", algorithm);
  if (!cuda) return refusal(conv_cpu(), pass, wanted, p);
  if (const void* table = emulated(kFamily.name))
    return refusal(*static_cast<const ConvCuda*>(table), pass, wanted, p);
#if DLOPS_WITH_CUDA
  return refusal(conv_cuda, pass, wanted, p);
#else
  return "is not in this build";
#endif
}

#define DLOPS_CONV_GEOMETRY "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, "
#define DLOPS_CONV_FORWARD                                                                    \
  "(Tensor x, Tensor w, Tensor? packed, Tensor? bias, Tensor? residual, " DLOPS_CONV_GEOMETRY \
  "str padding_mode, str activation"

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def("conv" DLOPS_CONV_FORWARD ", bool channels_last, str algorithm) -> Tensor");
  m.def("conv_out" DLOPS_CONV_FORWARD ", str algorithm, Tensor(a!) out) -> ()");
  m.def(
      "conv_data(Tensor dy, Tensor w, Tensor? packed, Tensor? bias, Tensor? residual, SymInt[] "
      "in_size, " DLOPS_CONV_GEOMETRY "str activation, bool channels_last, str algorithm) -> Tensor");
  m.def("conv_weight(Tensor x, Tensor dy, SymInt[] kernel, " DLOPS_CONV_GEOMETRY
        "bool channels_last, str algorithm) -> Tensor");
  m.def("conv_pack(Tensor w, SymInt[] in_size, " DLOPS_CONV_GEOMETRY "bool data, str algorithm) -> Tensor");
}

#define DLOPS_CONV_IMPL(m)                          \
  m.impl("conv", TORCH_BOX(&conv_forward));         \
  m.impl("conv_out", TORCH_BOX(&conv_forward_out)); \
  m.impl("conv_data", TORCH_BOX(&conv_data));       \
  m.impl("conv_weight", TORCH_BOX(&conv_weight))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) {
  DLOPS_CONV_IMPL(m);
  m.impl("conv_pack", TORCH_BOX(&conv_pack));
}
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_CONV_IMPL(m); }
#endif

}  // namespace dlops
