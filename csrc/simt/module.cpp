// dlops._simt and dlops._simt_race: the CUDA kernels of the package as this runner executes them. One file serves both
// modules: they differ in how the kernels were compiled, and in whether a race checker is linked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../attention/launch.h"
#include "../conv/launch.h"
#include "../diffusion/launch.h"
#include "../lstm/launch.h"
#include "../norm/launch.h"
#include "checker.h"
#include "conformance.h"
#include "report.h"

namespace {

using namespace dlops;
namespace py = pybind11;
using Index = std::array<unsigned, 3>;

dim3 to_dim3(const Index& i) { return dim3(i[0], i[1], i[2]); }
py::tuple to_tuple(dim3 d) { return py::make_tuple(d.x, d.y, d.z); }

// The launchers of every family: the same tables that the CUDA build has.
py::dict tables() {
  py::dict all;
  all["attention"] = py::capsule(&attention_cuda, "dlops.attention");
  all["conv"] = py::capsule(&conv_cuda, "dlops.conv");
  all["diffusion"] = py::capsule(&diffusion_cuda, "dlops.diffusion");
  all["lstm"] = py::capsule(&lstm_cuda, "dlops.lstm");
  all["norm"] = py::capsule(&norm_cuda, "dlops.norm");
  return all;
}

py::list catalogue() {
  py::list rows;
  auto add = [&](const KernelInfo* first, int count) {
    for (const KernelInfo* k = first; k < first + count; k++)
      rows.append(py::dict(py::arg("op") = k->op, py::arg("family") = k->family,
                           py::arg("variant") = k->variant, py::arg("name") = k->name,
                           py::arg("file") = k->file, py::arg("line") = k->line));
  };
  add(attention_cuda.kernels, attention_cuda.kernel_count);
  add(conv_cuda.kernels, conv_cuda.kernel_count);
  add(diffusion_cuda.kernels, diffusion_cuda.kernel_count);
  add(lstm_cuda.kernels, lstm_cuda.kernel_count);
  add(norm_cuda.kernels, norm_cuda.kernel_count);
  return rows;
}

py::dict options() {
  const simt::Options o = simt::options();
  const char* names[] = {"plain", "reverse", "random"};
  return py::dict(py::arg("order") = names[static_cast<int>(o.order)], py::arg("seed") = o.seed,
                  py::arg("threads") = o.threads);
}

void begin(const std::optional<std::pair<Index, Index>>& trace) {
  std::optional<std::pair<dim3, dim3>> traced;
  if (trace) traced.emplace(to_dim3(trace->first), to_dim3(trace->second));
  simt::begin_recording(traced);
}

py::dict end() {
  py::list launches, values;
  const simt::Recording r = simt::end_recording();
  for (const simt::LaunchRecord& l : r.launches) {
    const simt::Counters& c = l.counters;
    py::dict row(py::arg("kernel") = l.kernel, py::arg("grid") = to_tuple(l.config.grid),
                 py::arg("block") = to_tuple(l.config.block), py::arg("cluster") = to_tuple(l.config.cluster),
                 py::arg("shared_bytes") = c.shared_bytes, py::arg("barriers") = c.barriers,
                 py::arg("warp_collectives") = c.warp_collectives);
    // Ordinary loads and stores are seen where a checker is linked, and not elsewhere.
    auto traffic = [&](const char* name, long count) {
      row[name] = simt::checker ? py::object(py::int_(count)) : py::none();
    };
    traffic("shared_requests", c.shared_requests);
    traffic("shared_passes", c.shared_passes);
    traffic("global_requests", c.global_requests);
    traffic("global_sectors", c.global_sectors);
    launches.append(row);
  }
  for (const simt::TraceRecord& t : r.trace)
    values.append(py::dict(py::arg("name") = t.name, py::arg("value") = t.value, py::arg("file") = t.file,
                           py::arg("line") = t.line));
  return py::dict(py::arg("launches") = launches, py::arg("trace") = values);
}

py::list conformance() {
  py::list cases;
  for (const auto& c : dlops::conformance::conformance_cases())
    cases.append(py::dict(py::arg("name") = c.name, py::arg("wrappers") = c.wrappers,
                          py::arg("architecture") = c.architecture));
  return cases;
}

py::bytes run_conformance(const std::string& name) {
  for (const auto& c : dlops::conformance::conformance_cases()) {
    if (c.name != name) continue;
    const auto bytes = c.run();
    return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  throw std::invalid_argument("no such conformance case '" + name + "'");
}

void bind(py::module_& m) {
  m.doc() = "The CUDA kernels of dlops, run on the CPU by the simt runner. dlops.study is the way in.";
  m.def("tables", &tables, "Family -> capsule with its launchers.");
  m.def("kernels", &catalogue, "One dict per kernel and variant.");
  m.def("options", &options, "The order, seed and OS threads of the next launch.");
  m.def(
      "set_options",
      [](const std::string& order, uint64_t seed, int threads) {
        simt::set_options({simt::order_of(order), seed, threads});
      },
      py::arg("order"), py::arg("seed") = 1, py::arg("threads") = 0,
      "order: plain, reverse or random. threads: 0 is one per processor.");
  m.def("begin", &begin, py::arg("trace") = py::none(),
        "Record launches, and the values that thread trace[1] of block trace[0] passes to SIMT_TRACE.");
  m.def("end", &end, "What was recorded: {'launches': [...], 'trace': [...]}.");
  m.def("conformance", &conformance, "The conformance cases: one dict per case.");
  m.def("run_conformance", &run_conformance, py::arg("name"), "The output bytes of one case.");
}

}  // namespace

PYBIND11_MODULE(_simt, m) { bind(m); }
PYBIND11_MODULE(_simt_race, m) { bind(m); }
