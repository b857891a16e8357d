// dlops._C: the kernels for study and measurement. The catalogue, the instruction-set level, direct calls of the CPU
// kernels on any DLPack tensor with preallocated outputs, and the switch that sends CPU tensors to the simt runner. It
// includes pybind11 and no torch; the dispatcher ops of libdlops.so reach the same functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "../catalogue.h"
#include "../conv/refuses.h"
#include "../cpu/isa.h"
#include "../cpu/scratch.h"
#include "../diffusion/cpu.h"
#include "../emulation.h"
#include "../math/cpu.h"
#include "../norm/cpu.h"
#include "dlpack.h"

namespace {

using namespace dlops;
using python::Array;
namespace py = pybind11;

py::list catalogue() {
  py::list rows;
  for (const KernelInfo& k : kernels()) {
    py::dict row;
    row["op"] = k.op;
    row["family"] = k.family;
    row["variant"] = k.variant;
    row["device"] = k.device;
    row["architectures"] = k.architectures;
    row["dtypes"] = k.dtypes;
    row["tile"] = k.tile;
    row["name"] = k.name;
    row["file"] = k.file;
    row["line"] = k.line;
    row["dynamic_shared"] = k.dynamic_shared;
    rows.append(row);
  }
  return rows;
}

// tables: CUDA launchers by family, in capsules named "dlops.<family>", as dlops._simt.tables() has them.
void emulate_with(const std::optional<std::map<std::string, py::capsule>>& tables) {
  emulate(nullptr, nullptr);
  if (!tables) return;
  for (const auto& [family, capsule] : *tables) {
    const void* table = PyCapsule_GetPointer(capsule.ptr(), ("dlops." + family).c_str());
    if (!table) throw py::error_already_set();
    emulate(family.c_str(), table);
  }
}

// The sizes of a convolution by dimension, the last one last; see conv/params.h.
std::optional<std::string> conv_refusal(bool cuda, const std::string& pass, const std::string& algorithm,
                                        int64_t channels, int64_t filters, int64_t groups,
                                        const std::vector<int64_t>& in, const std::vector<int64_t>& out,
                                        const std::vector<int64_t>& kernel,
                                        const std::vector<int64_t>& stride,
                                        const std::vector<int64_t>& padding,
                                        const std::vector<int64_t>& dilation, const std::string& padding_mode,
                                        bool channels_last, const std::string& dtype) {
  auto index = [](const std::string& name, const std::vector<std::string>& names) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) throw std::invalid_argument("conv_refuses: unknown name '" + name + "'");
    return static_cast<int>(at - names.begin());
  };
  ConvProblem p{};
  p.batch = 1;
  p.channels = channels;
  p.filters = filters;
  p.groups = groups;
  auto fill = [&](int64_t* to, const std::vector<int64_t>& from, int64_t missing) {
    for (size_t i = 0; i < 3; i++) to[i] = i + from.size() < 3 ? missing : from[i + from.size() - 3];
  };
  fill(p.in, in, 1);
  fill(p.out, out, 1);
  fill(p.kernel, kernel, 1);
  fill(p.stride, stride, 1);
  fill(p.dilation, dilation, 1);
  fill(p.padding, padding, 0);
  p.padding_mode =
      static_cast<PaddingMode>(index(padding_mode, {"zeros", "reflect", "replicate", "circular"}));
  p.channels_last = channels_last;
  p.dtype = static_cast<Dtype>(index(dtype, {"f32", "f16", "bf16"}));
  p.threads = 1;
  const std::string why =
      conv_refuses(cuda, static_cast<ConvPass>(index(pass, {"forward", "data", "weight"})), algorithm, p);
  return why.empty() ? std::nullopt : std::optional(why);
}

void math(const std::string& name, const py::object& x, const py::object& out) {
  static const char* const names[] = {"exp2", "exp", "log", "sigmoid", "silu", "tanh", "sin", "cos"};
  for (int i = 0; i < 8; i++) {
    if (name != names[i]) continue;
    Array in("x", x), y("out", out);
    y.expect_like(in);
    const float* from = in.floats();
    float* to = y.floats();
    py::gil_scoped_release release;
    return math_cpu().evaluate(static_cast<MathFunction>(i), from, to, in.numel());
  }
  throw std::invalid_argument("math: unknown function '" + name +
                              "': there are exp2, exp, log, sigmoid, silu, tanh, sin, cos");
}

bool is_naive(const std::string& variant) {
  if (variant == "naive" || variant == "fused") return variant == "naive";
  throw std::invalid_argument("unknown variant '" + variant + "': this device has naive, fused");
}

void randn(const py::object& out, const py::object& seeds, int step, const std::string& variant,
           int threads) {
  const bool naive = is_naive(variant);
  Array y("out", out), keys("seeds", seeds);
  if (keys.numel() != y.samples()) throw std::invalid_argument("randn: seeds must have one entry per sample");
  if (y.numel() == 0) return;
  RandnParams p{keys.integers(), step, y.data(), y.samples(), y.numel() / y.samples(), y.dtype(), threads};
  py::gil_scoped_release release;
  (naive ? diffusion_cpu().randn_naive : diffusion_cpu().randn)(p);
}

void diffusion_step(const py::object& out, const py::object& sample, const py::object& model_output,
                    const py::object& table, int64_t row, const std::optional<py::object>& noise,
                    const std::optional<py::object>& seeds, const std::optional<py::object>& out_x0,
                    const std::string& variant, int threads) {
  const bool naive = is_naive(variant);
  Array y("out", out), x("sample", sample), m("model_output", model_output), k("table", table);
  for (const Array* a : {&x, &m}) a->expect_like(y);
  std::optional<Array> z, s, x0;
  if (noise) z.emplace("noise", *noise).expect_like(y);
  if (seeds) s.emplace("seeds", *seeds);
  if (out_x0) x0.emplace("out_x0", *out_x0).expect_like(y);
  if (k.numel() % kStepColumns || row < 0 || row >= k.numel() / kStepColumns)
    throw std::invalid_argument("diffusion_step: table must be [rows, " + std::to_string(kStepColumns) +
                                "] with row inside");
  if (s && s->numel() != y.samples())
    throw std::invalid_argument("diffusion_step: seeds must have one entry per sample");
  if (y.numel() == 0) return;
  StepParams p{};
  p.sample = x.data();
  p.model = m.data();
  p.noise = z ? z->data() : nullptr;
  p.seeds = s ? s->integers() : nullptr;
  p.rows = {k.floats(), k.numel() / kStepColumns, nullptr, 0, row};
  p.prev = y.data();
  p.x0 = x0 ? x0->data() : nullptr;
  p.samples = y.samples();
  p.elements = y.numel() / y.samples();
  p.dtype = y.dtype();
  p.threads = threads;
  py::gil_scoped_release release;
  (naive ? diffusion_cpu().step_naive : diffusion_cpu().step)(p);
}

// x, out: [N, C, HW] in C order; stats: [2, N, G] float32 out (rstd, mean).
void group_norm(const py::object& out, const py::object& stats, const py::object& x, int64_t groups,
                const std::optional<py::object>& weight, const std::optional<py::object>& bias, float eps,
                bool silu, const std::string& variant, int threads) {
  const bool naive = is_naive(variant);
  Array y("out", out), in("x", x), s("stats", stats);
  in.expect_like(y);
  if (y.numel() == 0) return;
  const int64_t n = y.size(0), c = y.size(1);
  if (groups < 1 || c % groups) throw std::invalid_argument("group_norm: groups must divide the channels");
  if (s.numel() != 2 * n * groups) throw std::invalid_argument("group_norm: stats must be [2, N, groups]");
  std::optional<Array> w, b;
  if (weight) w.emplace("weight", *weight);
  if (bias) b.emplace("bias", *bias);
  for (const auto& p : {w, b})
    if (p && (p->numel() != c || p->dtype() != Dtype::f32))
      throw std::invalid_argument("group_norm: weight and bias must be float32 [C]");
  GroupNormParams p{};
  p.x = in.data();
  p.weight = w ? w->data() : nullptr;
  p.bias = b ? b->data() : nullptr;
  p.y = y.data();
  p.rstd = s.floats();
  p.mean = p.rstd + n * groups;
  p.n = n;
  p.c = c;
  p.hw = y.numel() / (n * c);
  p.groups = groups;
  p.eps = eps;
  p.silu = silu;
  p.dtype = y.dtype();
  p.param_dtype = Dtype::f32;
  p.threads = threads;
  py::gil_scoped_release release;
  (naive ? norm_cpu().group_norm_naive : norm_cpu().group_norm)(p);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "dlops kernels for study and measurement: catalogue, instruction-set level, direct calls on DLPack "
      "tensors.";
  m.def("kernels", &catalogue, "One dict per kernel and variant.");
  m.def("emulate", &emulate_with, py::arg("tables"),
        "From now on this thread's CPU tensors go to these tables of CUDA launchers, {family: capsule}, as "
        "_simt.tables() has them; None: to the CPU kernels.");
  m.def(
      "emulated", [](const std::string& family) { return emulated(family.c_str()) != nullptr; },
      py::arg("family"), "Whether they do.");
  m.def("conv_refuses", &conv_refusal, "Why a convolution kernel cannot take a problem; None if it can.");
  m.def(
      "cpu_isa", [] { return std::string(cpu::isa_name(cpu::isa())); }, "The instruction-set level in use.");
  m.def("set_cpu_isa", &cpu::set_isa, py::arg("name"), "Use another level that this CPU has.");
  m.def("cpu_isas", &cpu::host_isas, "Every level that this CPU has, lowest first.");
  m.def("cpu_is_amd", [] { return cpu::is_amd(); }, "Whether AMD made this CPU.");
  m.def("empty_cache", &cpu::empty_cache, "Free idle scratch memory; returns the bytes.");
  m.def("math", &math, py::arg("name"), py::arg("x"), py::arg("out"),
        "An elementary function of csrc/cpu/math.h.");
  m.def("randn", &randn, py::arg("out"), py::arg("seeds"), py::arg("step") = -1, py::arg("variant") = "fused",
        py::arg("threads") = 1, "Counter-based normals into out [N, ...]; seeds [N] int64.");
  m.def("diffusion_step", &diffusion_step, py::arg("out"), py::arg("sample"), py::arg("model_output"),
        py::arg("table"), py::arg("row") = 0, py::kw_only(), py::arg("noise") = py::none(),
        py::arg("seeds") = py::none(), py::arg("out_x0") = py::none(), py::arg("variant") = "fused",
        py::arg("threads") = 1, "One solver step into out, all tensors [N, ...]; table [rows, 11] float32.");
  m.def("group_norm", &group_norm, py::arg("out"), py::arg("stats"), py::arg("x"), py::arg("groups"),
        py::kw_only(), py::arg("weight") = py::none(), py::arg("bias") = py::none(), py::arg("eps") = 1e-5f,
        py::arg("silu") = false, py::arg("variant") = "fused", py::arg("threads") = 1,
        "GroupNorm of x [N, C, ...] into out; stats [2, N, groups] float32 receives rstd and mean.");
}
