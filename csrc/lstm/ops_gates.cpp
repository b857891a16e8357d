// The torch face of the gates: the element-wise half of one step, for products that torch computes.
#include "../torch/dispatch.h"
#include "arguments.h"
#include "cpu.h"
#include "launch.h"

namespace dlops {
namespace {

using namespace face;
using namespace lstm;

constexpr auto kFamily = DLOPS_FAMILY(lstm);

struct GatesArguments {
  OptionalTensor h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c;
  std::string cell;
  double zoneout_h, zoneout_c, eps;
};

template <class Params>
void fill_gates(const char* op, Params& p, Operands& operands, const Tensor& like, const GatesArguments& a) {
  p.cell = cell_of(op, a.cell);
  p.dtype = dtype_of(op, "gates", like);
  const int64_t gates = gates_of(p.cell);
  if (like.dim() != 2 || like.size(1) % gates || like.size(1) == 0)
    refuse(op, "the gates must be [B, ", gates, " H]: got shape ", shape_of(like));
  p.batch = like.size(0);
  p.hidden = like.size(1) / gates;
  const Sizes state{p.batch, p.hidden};
  p.h = operands.take("h", a.h, state, like.scalar_type());
  p.c = operands.take("c", a.c, state, like.scalar_type());
  if (p.cell == Cell::gru && !a.h) refuse(op, "a gru needs h");
  if (p.cell == Cell::lstm && !a.c) refuse(op, "an lstm needs c");
  p.norm_weight = operands.take<float>("norm_weight", a.norm_weight, {gates * p.hidden});
  p.cell_weight = operands.take<float>("cell_weight", a.cell_weight, {p.hidden});
  p.cell_bias = operands.take<float>("cell_bias", a.cell_bias, {p.hidden});
  if ((p.norm_weight || p.cell_weight) && !on_cuda(like))
    refuse(op, "LayerNorm is for CUDA: on the CPU the recurrence has it");
  if ((p.cell_weight || p.cell_bias) && (p.cell != Cell::lstm || !p.cell_weight || !p.cell_bias))
    refuse(op, "cell_weight and cell_bias go together, with an lstm");
  p.keep_h = reinterpret_cast<const uint8_t*>(operands.take<bool>("keep_h", a.keep_h, state));
  p.keep_c = reinterpret_cast<const uint8_t*>(operands.take<bool>("keep_c", a.keep_c, state));
  if ((a.keep_h || a.zoneout_h > 0) && !a.h) refuse(op, "zoneout needs h");
  fill_zoneout(op, p, a.zoneout_h, a.zoneout_c);
  p.eps = static_cast<float>(a.eps);
}

// [h, c, saved, hat, rstd], empty where not made.
std::vector<Tensor> gates(Tensor gates_x, Tensor gates_h, OptionalTensor b_ih, OptionalTensor b_hh,
                          OptionalTensor h, OptionalTensor c, OptionalTensor norm_weight,
                          OptionalTensor cell_weight, OptionalTensor cell_bias, OptionalTensor keep_h,
                          OptionalTensor keep_c, std::string cell, double zoneout_h, double zoneout_c,
                          double eps, bool save) {
  const char* op = "gates";
  GatesParams p{};
  Operands operands(op, gates_x);
  fill_gates(op, p, operands, gates_x,
             {h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c, cell, zoneout_h, zoneout_c, eps});
  const int64_t g = gates_x.size(1);
  const ScalarType type = gates_x.scalar_type();
  p.gates_x = operands.take("gates_x", gates_x, {p.batch, g}, type);
  p.gates_h = operands.take("gates_h", gates_h, {p.batch, g}, type);
  p.b_ih = operands.take("b_ih", b_ih, {g}, type);
  p.b_hh = operands.take("b_hh", b_hh, {g}, type);
  const bool is_lstm = p.cell == Cell::lstm, norm = save && p.norm_weight;
  Tensor h_out = new_matrix(gates_x, p.batch, p.hidden);
  Tensor c_out = is_lstm ? new_matrix(gates_x, p.batch, p.hidden) : new_floats(gates_x, {0});
  Tensor saved =
      save ? new_floats(gates_x, {p.batch, saved_parts(p.cell) * p.hidden}) : new_floats(gates_x, {0});
  Tensor hat = norm ? new_floats(gates_x, {p.batch, g}) : new_floats(gates_x, {0});
  Tensor rstd = norm ? new_floats(gates_x, {p.batch}) : new_floats(gates_x, {0});
  const std::vector<Tensor> all{h_out, c_out, saved, hat, rstd};
  if (p.batch == 0) return all;
  p.h_out = h_out.mutable_data_ptr();
  p.c_out = is_lstm ? c_out.mutable_data_ptr() : nullptr;
  p.saved = floats(saved);
  p.hat = floats(hat);
  p.rstd = floats(rstd);
  run(op, kFamily, gates_x, p, [](const auto& table) { return table.gates; });
  return all;
}

// [dgates_x, dgates_h, db_hh_rows, dh, dc, dnorm_weight, dcell_weight, dcell_bias], empty where there is none. like: gates_x.
std::vector<Tensor> gates_backward(OptionalTensor dh_out, OptionalTensor dc_out, Tensor like,
                                   OptionalTensor h, OptionalTensor c, Tensor saved, OptionalTensor hat,
                                   OptionalTensor rstd, OptionalTensor norm_weight,
                                   OptionalTensor cell_weight, OptionalTensor cell_bias,
                                   OptionalTensor keep_h, OptionalTensor keep_c, std::string cell,
                                   double zoneout_h, double zoneout_c, double eps) {
  const char* op = "gates_backward";
  GatesBackwardParams p{};
  Operands operands(op, like);
  fill_gates(op, p, operands, like,
             {h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c, cell, zoneout_h, zoneout_c, eps});
  const int64_t g = like.size(1), parts = gates_parts(p.batch);
  const ScalarType type = like.scalar_type();
  const Sizes state{p.batch, p.hidden};
  p.saved = operands.take<float>("saved", saved, {p.batch, saved_parts(p.cell) * p.hidden});
  if (p.norm_weight) {
    p.hat = operands.take<float>("hat", hat, {p.batch, g});
    p.rstd = operands.take<float>("rstd", rstd, {p.batch});
    if (!hat || !rstd) refuse(op, "hat and rstd must be what gates saved");
  }
  p.dh_out = operands.take("dh_out", dh_out, state, type);
  p.dc_out = operands.take("dc_out", dc_out, state, type);
  std::vector<Tensor> all;
  auto rows = [&](bool wanted, int64_t width) -> void* {
    all.push_back(wanted ? new_matrix(like, p.batch, width) : new_floats(like, {0}));
    return wanted ? all.back().mutable_data_ptr() : nullptr;
  };
  auto sums = [&](bool wanted, int64_t width) -> float* {
    all.push_back(new_floats(like, wanted ? Sizes{parts, width} : Sizes{0}));
    return wanted ? static_cast<float*>(all.back().mutable_data_ptr()) : nullptr;
  };
  p.dgates_x = rows(true, g);
  p.dgates_h = rows(true, g);
  p.db_hh_rows = rows(p.norm_weight, g);
  p.dh = rows(h.has_value(), p.hidden);
  p.dc = rows(c.has_value(), p.hidden);
  p.dnorm_weight = sums(p.norm_weight, g);
  p.dcell_weight = sums(p.cell_weight, p.hidden);
  p.dcell_bias = sums(p.cell_weight, p.hidden);
  if (p.batch == 0) return all;
  run(op, kFamily, like, p, [](const auto& table) { return table.gates_backward; });
  return all;
}

}  // namespace

#define DLOPS_LSTM_NORMS "Tensor? norm_weight, Tensor? cell_weight, Tensor? cell_bias, "
#define DLOPS_LSTM_ZONEOUT \
  "Tensor? keep_h, Tensor? keep_c, str cell, float zoneout_h, float zoneout_c, float eps"

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def(
      "gates(Tensor gates_x, Tensor gates_h, Tensor? b_ih, Tensor? b_hh, Tensor? h, Tensor? "
      "c, " DLOPS_LSTM_NORMS DLOPS_LSTM_ZONEOUT ", bool save) -> Tensor[]");
  m.def(
      "gates_backward(Tensor? dh_out, Tensor? dc_out, Tensor like, Tensor? h, Tensor? c, Tensor saved, "
      "Tensor? hat, "
      "Tensor? rstd, " DLOPS_LSTM_NORMS DLOPS_LSTM_ZONEOUT ") -> Tensor[]");
}

#define DLOPS_LSTM_IMPL(m)            \
  m.impl("gates", TORCH_BOX(&gates)); \
  m.impl("gates_backward", TORCH_BOX(&gates_backward))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) { DLOPS_LSTM_IMPL(m); }
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_LSTM_IMPL(m); }
#endif

}  // namespace dlops
