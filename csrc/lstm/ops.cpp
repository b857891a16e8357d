// The torch face of the recurrent family: schemas, and the call of a CPU or CUDA table. The checks are in arguments.h.
#include "../cpu/isa.h"
#include "../torch/dispatch.h"
#include "arguments.h"
#include "cpu.h"
#include "launch.h"

namespace dlops {
namespace {

using namespace face;
using namespace lstm;

constexpr auto kFamily = DLOPS_FAMILY(lstm);

// The rung that `variant` names, or the fastest that takes the problem.
template <class Table>
Rung rung_of(const char* op, const Table& table, const RecurrenceProblem& p, const std::string& variant) {
  if (!variant.empty()) {
    const int wanted = index_of(op, "variant", kRungNames, variant);
    if (!table.rungs[wanted].forward) refuse(op, "variant '", variant, "' is not there on this device");
    if (const char* why = table.rungs[wanted].refuses(p)) refuse(op, "variant '", variant, "' ", why);
    return static_cast<Rung>(wanted);
  }
  const char* why = nullptr;
  for (int i = kRungs - 1; i >= 0; i--)
    if (table.rungs[i].forward && !(why = table.rungs[i].refuses(p))) return static_cast<Rung>(i);
  refuse(op, "no kernel of this device takes the problem: the simplest one ", why);
}

// ---- packing (CPU) ----

const float* kept_weight(const char* op, const char* name, const Tensor& packed, const PackParams& pack) {
  check_dtype(op, name, packed, ScalarType::Float);
  if (!packed.is_cpu() || !packed.is_contiguous() || packed.numel() != lstm_cpu().packed_floats(pack))
    refuse(op, name, " has shape ", shape_of(packed), ", expected [", lstm_cpu().packed_floats(pack),
           "] as recurrence_pack makes it");
  return static_cast<const float*>(packed.const_data_ptr());
}

Tensor packed_of(PackParams pack, const Tensor& like) {
  Tensor packed = new_floats(like, {lstm_cpu().packed_floats(pack)});
  pack.packed = static_cast<float*>(packed.mutable_data_ptr());
  lstm_cpu().pack(pack);
  return packed;
}

Tensor recurrence_pack(Tensor w, int64_t gates) {
  const char* op = "recurrence_pack";
  const Dtype dtype = dtype_of(op, "w", w);
  if (w.dim() != 2 || w.numel() == 0 || gates < 1 || gates > 4 || w.size(0) % gates)
    refuse(op, "w must be [gates H, width] and not empty: got shape ", shape_of(w), " and ", gates, " gates");
  const Tensor in_order = face::contiguous(w);
  return packed_of(
      {static_cast<int>(gates), w.size(0) / gates, w.size(1), dtype, in_order.const_data_ptr(), nullptr}, w);
}

// The packed form of one weight that the caller kept, or null: the kernel packs for itself.
const float* packed_or_none(const char* op, const char* name, const OptionalTensor& kept,
                            const PackParams& pack) {
  return pack.w && kept ? kept_weight(op, name, *kept, pack) : nullptr;
}

struct Weights {
  Tensor w_hh;
  OptionalTensor w_ih, w_hr, packed_ih, packed_hh, packed_hr, b_ih, b_hh, h0, c0;
};

// Weights, biases and initial state, for either pass.
template <class Params>
void fill_weights(const char* op, Params& p, Operands& operands, const Weights& w) {
  const ScalarType type = w.w_hh.scalar_type();
  const int64_t g = p.gates() * p.hidden;
  p.w_hh = operands.take("w_hh", w.w_hh, {g, p.state}, type);
  p.w_ih = operands.take("w_ih", w.w_ih, {g, p.input}, type);
  p.w_hr = operands.take("w_hr", w.w_hr, {p.state, p.hidden}, type);
  if (p.projects() != (p.w_hr != nullptr))
    refuse(op, "w_hr goes with a w_hh of fewer columns than H: got a w_hh of shape ", shape_of(w.w_hh));
  p.h0 = operands.take("h0", w.h0, {p.batch, p.state}, type);
  p.c0 = p.cell == Cell::lstm ? operands.take("c0", w.c0, {p.batch, p.hidden}, type) : nullptr;
}

// ---- forward ----

// [y, hn, cn, saved, c, hat, rstd], empty where not made. `save`: what the backward pass needs; `states`: c alone.
std::vector<Tensor> recurrence(Tensor input, Tensor w_hh, OptionalTensor w_ih, OptionalTensor w_hr,
                               OptionalTensor packed_ih, OptionalTensor packed_hh, OptionalTensor packed_hr,
                               OptionalTensor b_ih, OptionalTensor b_hh, OptionalTensor h0, OptionalTensor c0,
                               OptionalTensor norm_weight, OptionalTensor cell_weight,
                               OptionalTensor cell_bias, OptionalTensor dropout, OptionalTensor reset,
                               OptionalTensor keep_h, OptionalTensor keep_c, OptionalTensor lengths,
                               OptionalTensor offsets, std::string cell, bool reverse, bool batch_first,
                               double zoneout_h, double zoneout_c, double eps, bool save, bool states,
                               std::string variant) {
  const char* op = "recurrence";
  RecurrenceParams p{};
  Operands operands(op, input);
  check_device(op, "w_hh", w_hh, input);
  fill(op, p, operands, input, w_hh,
       {norm_weight, cell_weight, cell_bias, dropout, reset, keep_h, keep_c, lengths, offsets, cell, reverse,
        batch_first, zoneout_h, zoneout_c, eps});
  const int64_t g = p.gates() * p.hidden;
  const Sizes shape(input.sizes().begin(), input.sizes().end());
  if (w_ih) {
    if (on_cuda(input)) refuse(op, "w_ih must be None on this device: give W_ih x as input");
    p.input = shape.back();
    if (p.input == 0) refuse(op, "input has no features: got shape ", shape_of(input));
    p.x = operands.take("input", input, shape, w_hh.scalar_type());
  } else {
    Sizes expected = shape;
    expected.back() = g;
    p.gates_x = operands.take<float>("input (W_ih x)", input, expected);
  }
  fill_weights(op, p, operands, {w_hh, w_ih, w_hr, {}, {}, {}, b_ih, b_hh, h0, c0});
  p.b_ih = operands.take("b_ih", b_ih, {g}, w_hh.scalar_type());
  p.b_hh = operands.take("b_hh", b_hh, {g}, w_hh.scalar_type());

  const bool is_lstm = p.cell == Cell::lstm, empty = p.rows == 0 || p.batch * p.steps == 0;
  auto new_or_none = [&](bool wanted, int64_t width) {
    return wanted ? new_rows(w_hh, input, width, true) : new_floats(w_hh, {0});
  };
  Tensor y = new_rows(w_hh, input, p.state, false), hn = new_matrix(w_hh, p.batch, p.state);
  Tensor cn = is_lstm ? new_matrix(w_hh, p.batch, p.hidden) : new_floats(w_hh, {0});
  Tensor saved = new_or_none(save, saved_parts(p.cell) * p.hidden);
  Tensor c = new_or_none(is_lstm && (save || states), p.hidden);
  Tensor hat = new_or_none(save && p.norm_weight, g);
  Tensor rstd = save && p.norm_weight ? new_floats(w_hh, {p.rows}) : new_floats(w_hh, {0});
  const std::vector<Tensor> all{y, hn, cn, saved, c, hat, rstd};
  if (empty) {
    for (auto [to, from] : {std::pair{hn, h0}, std::pair{cn, c0}})
      if (to.numel()) from ? torch::stable::copy_(to, *from) : torch::stable::zero_(to);
    return all;
  }
  p.y = y.mutable_data_ptr();
  p.hn = hn.mutable_data_ptr();
  p.cn = is_lstm ? cn.mutable_data_ptr() : nullptr;
  p.saved = floats(saved);
  p.c = floats(c);
  p.hat = floats(hat);
  p.rstd = floats(rstd);
  run(op, kFamily, w_hh, p, [&](const auto& table) {
    p.rung = rung_of(op, table, p, variant);
    if constexpr (requires { table.pack; }) {
      if (p.rung == Rung::fused_cell) {
        const int gates = static_cast<int>(p.gates());
        p.packed_ih =
            packed_or_none(op, "packed_ih", packed_ih, {gates, p.hidden, p.input, p.dtype, p.w_ih, nullptr});
        p.packed_hh =
            packed_or_none(op, "packed_hh", packed_hh, {gates, p.hidden, p.state, p.dtype, p.w_hh, nullptr});
        p.packed_hr =
            packed_or_none(op, "packed_hr", packed_hr, {1, p.state, p.hidden, p.dtype, p.w_hr, nullptr});
      }
    }
    return table.rungs[static_cast<int>(p.rung)].forward;
  });
  return all;
}

// One step of a batch [B, I], by the same kernels: fewer checks, for calls that are all overhead. [h, c], or [h].
std::vector<Tensor> recurrent_cell(Tensor x, Tensor w_ih, Tensor w_hh, OptionalTensor packed_ih,
                                   OptionalTensor packed_hh, OptionalTensor b_ih, OptionalTensor b_hh,
                                   Tensor h, OptionalTensor c, std::string cell) {
  const char* op = "recurrent_cell";
  RecurrenceParams p{};
  Operands operands(op, x);
  p.cell = cell_of(op, cell);
  p.dtype = dtype_of(op, "w_hh", w_hh);
  const ScalarType type = w_hh.scalar_type();
  if (x.dim() != 2) refuse(op, "input must be [B, I]: got shape ", shape_of(x));
  if (w_hh.dim() != 2 || w_hh.size(0) != p.gates() * w_hh.size(1) || w_hh.numel() == 0)
    refuse(op, "w_hh must be [", p.gates(), " H, H]: got shape ", shape_of(w_hh));
  p.steps = p.step_stride = p.batch_stride = 1;
  p.batch = p.rows = x.size(0);
  p.input = x.size(1);
  if (p.input == 0) refuse(op, "input has no features: got shape ", shape_of(x));
  if (p.cell == Cell::lstm && !c) refuse(op, "an lstm needs c");
  p.hidden = p.state = w_hh.size(1);
  const int64_t g = p.gates() * p.hidden;
  p.x = operands.take("input", x, {p.batch, p.input}, type);
  p.w_ih = operands.take("w_ih", w_ih, {g, p.input}, type);
  p.w_hh = operands.take("w_hh", w_hh, {g, p.hidden}, type);
  p.b_ih = operands.take("b_ih", b_ih, {g}, type);
  p.b_hh = operands.take("b_hh", b_hh, {g}, type);
  p.h0 = operands.take("h", h, {p.batch, p.hidden}, type);
  p.c0 = p.cell == Cell::lstm ? operands.take("c", c, {p.batch, p.hidden}, type) : nullptr;
  std::vector<Tensor> made{new_matrix(w_hh, p.batch, p.hidden)};
  if (p.cell == Cell::lstm) made.push_back(new_matrix(w_hh, p.batch, p.hidden));
  if (p.batch == 0) return made;
  p.y = p.hn = made[0].mutable_data_ptr();
  p.cn = p.cell == Cell::lstm ? made[1].mutable_data_ptr() : nullptr;
  p.rung = Rung::fused_cell;
  p.threads = threads();
  const int gates = static_cast<int>(p.gates());
  p.packed_ih =
      packed_or_none(op, "packed_ih", packed_ih, {gates, p.hidden, p.input, p.dtype, p.w_ih, nullptr});
  p.packed_hh =
      packed_or_none(op, "packed_hh", packed_hh, {gates, p.hidden, p.hidden, p.dtype, p.w_hh, nullptr});
  lstm_cpu().rungs[static_cast<int>(p.rung)].forward(p);
  return made;
}

// ---- backward ----

// Of [dx, dh0, dc0, dgates_x, dgates_h, dw_ih, dw_hh, dw_hr, db_ih, db_hh, dnorm_weight, dcell_weight, dcell_bias, h_before]
// those that `needs` marks. On CUDA: dh0, dc0, dgates_x, dgates_h and h_before.
std::vector<Tensor> recurrence_backward(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, OptionalTensor dc, OptionalTensor x,
    Tensor w_hh, OptionalTensor w_ih, OptionalTensor w_hr, OptionalTensor h0, OptionalTensor c0, Tensor y,
    Tensor saved, OptionalTensor c, OptionalTensor hat, OptionalTensor rstd, OptionalTensor norm_weight,
    OptionalTensor cell_weight, OptionalTensor cell_bias, OptionalTensor dropout, OptionalTensor reset,
    OptionalTensor keep_h, OptionalTensor keep_c, OptionalTensor lengths, OptionalTensor offsets,
    std::string cell, bool reverse, bool batch_first, double zoneout_h, double zoneout_c, double eps,
    std::vector<int64_t> needs, std::string variant) {
  const char* op = "recurrence_backward";
  constexpr size_t kResults = 14;
  if (needs.size() != kResults) refuse(op, "needs must have ", kResults, " values: got ", needs.size());
  RecurrenceBackwardParams p{};
  Operands operands(op, y);
  check_device(op, "w_hh", w_hh, y);
  fill(op, p, operands, y, w_hh,
       {norm_weight, cell_weight, cell_bias, dropout, reset, keep_h, keep_c, lengths, offsets, cell, reverse,
        batch_first, zoneout_h, zoneout_c, eps});
  const ScalarType type = w_hh.scalar_type();
  const int64_t g = p.gates() * p.hidden;
  auto rows_of = [&](int64_t width) {
    Sizes shape(y.sizes().begin(), y.sizes().end());
    shape.back() = width;
    return shape;
  };
  if (x) {
    if (x->dim() != y.dim()) refuse(op, "x must have the dimensions of y: got shape ", shape_of(*x));
    p.input = x->size(x->dim() - 1);
    p.x = operands.take("x", x, rows_of(p.input), type);
  }
  fill_weights(op, p, operands, {w_hh, w_ih, w_hr, {}, {}, {}, {}, {}, h0, c0});
  p.y = operands.take("y", y, rows_of(p.state), type);
  p.saved = operands.take<float>("saved", saved, rows_of(saved_parts(p.cell) * p.hidden));
  if (p.cell == Cell::lstm) p.c = operands.take<float>("c", c, rows_of(p.hidden));
  if (p.norm_weight) {
    p.hat = operands.take<float>("hat", hat, rows_of(g));
    p.rstd = operands.take<float>("rstd", rstd, {p.rows});
  }
  p.dy = operands.take("dy", dy, rows_of(p.state), type);
  p.dhn = operands.take("dhn", dhn, {p.batch, p.state}, type);
  p.dcn = operands.take("dcn", dcn, {p.batch, p.hidden}, type);
  p.dc = operands.take<float>("dc", dc, rows_of(p.hidden));

  std::vector<Tensor> made;
  made.reserve(kResults);
  auto add = [&](size_t i, auto make) -> void* {
    if (!needs[i]) return nullptr;
    made.push_back(make());
    return made.back().mutable_data_ptr();
  };
  auto add_floats = [&](size_t i, const Sizes& shape) {
    return static_cast<float*>(add(i, [&] { return new_floats(w_hh, shape); }));
  };
  p.dx = add(0, [&] { return new_rows(w_hh, y, p.input, false); });
  p.dh0 = add(1, [&] { return new_matrix(w_hh, p.batch, p.state); });
  p.dc0 = add(2, [&] { return new_matrix(w_hh, p.batch, p.hidden); });
  p.dgates_x = static_cast<float*>(add(3, [&] { return new_rows(w_hh, y, g, true); }));
  p.dgates_h = static_cast<float*>(add(4, [&] { return new_rows(w_hh, y, g, true); }));
  p.dw_ih = add_floats(5, {g, p.input});
  p.dw_hh = add_floats(6, {g, p.state});
  p.dw_hr = add_floats(7, {p.state, p.hidden});
  p.db_ih = add_floats(8, {g});
  p.db_hh = add_floats(9, {g});
  p.dnorm_weight = add_floats(10, {g});
  p.dcell_weight = add_floats(11, {p.hidden});
  p.dcell_bias = add_floats(12, {p.hidden});
  p.h_before = add(13, [&] { return new_rows(w_hh, y, p.state, false); });
  if (p.rows == 0 || p.batch * p.steps == 0) {
    for (Tensor& t : made) torch::stable::zero_(t);
    size_t i = needs[0] ? 1 : 0;  // with no step the state passes through
    for (auto [need, from] : {std::pair{needs[1], dhn}, std::pair{needs[2], dcn}})
      if (need) {
        if (from) torch::stable::copy_(made[i], *from);
        i++;
      }
    return made;
  }
  if ((p.cell == Cell::lstm && !p.c) || (p.norm_weight && (!p.hat || !p.rstd)))
    refuse(op, "c, hat and rstd must be what recurrence saved");
  if ((needs[0] || needs[5]) && (!p.x || !p.w_ih)) refuse(op, "dx and dw_ih need x and w_ih");
  if ((needs[7] && !p.w_hr) || (needs[10] && !p.norm_weight) || ((needs[11] || needs[12]) && !p.cell_weight))
    refuse(op, "dw_hr, dnorm_weight, dcell_weight and dcell_bias need their weights");
  for (size_t i : {0, 5, 6, 7, 8, 9, 10, 11, 12})
    if (needs[i] && on_cuda(y)) refuse(op, "result ", i, " is for the CPU: make it of dgates_x and dgates_h");
  if (needs[13] && !on_cuda(y)) refuse(op, "h_before is for CUDA");
  run(op, kFamily, w_hh, p, [&](const auto& table) {
    p.rung = rung_of(op, table, p, variant);
    return table.rungs[static_cast<int>(p.rung)].backward;
  });
  return made;
}

const bool registered = [] {
  for (const LstmCpu* t : DLOPS_ALL(lstm, &lstm_avx512bf16)) add_kernels(t->kernels, t->kernel_count);
#if DLOPS_WITH_CUDA
  add_kernels(lstm_cuda.kernels, lstm_cuda.kernel_count);
#endif
  return true;
}();

}  // namespace

const LstmCpu& lstm_cpu() { return DLOPS_CHOOSE(lstm, &lstm_avx512bf16); }

#define DLOPS_LSTM_OPTIONS                                                                                 \
  "Tensor? norm_weight, Tensor? cell_weight, Tensor? cell_bias, "                                          \
  "Tensor? dropout, Tensor? reset, Tensor? keep_h, Tensor? keep_c, Tensor? lengths, Tensor? offsets, str " \
  "cell, "                                                                                                 \
  "bool reverse, bool batch_first, float zoneout_h, float zoneout_c, float eps, "

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def("recurrence_pack(Tensor w, SymInt gates) -> Tensor");
  m.def(
      "recurrence(Tensor input, Tensor w_hh, Tensor? w_ih, Tensor? w_hr, Tensor? packed_ih, Tensor? "
      "packed_hh, "
      "Tensor? packed_hr, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor? c0, " DLOPS_LSTM_OPTIONS
      "bool save, bool states, str variant) -> Tensor[]");
  m.def(
      "recurrent_cell(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? packed_ih, Tensor? packed_hh, Tensor? "
      "b_ih, "
      "Tensor? b_hh, Tensor h, Tensor? c, str cell) -> Tensor[]");
  m.def(
      "recurrence_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor? dc, Tensor? x, Tensor w_hh, Tensor? "
      "w_ih, "
      "Tensor? w_hr, Tensor? h0, Tensor? c0, Tensor y, Tensor saved, Tensor? c, Tensor? hat, Tensor? "
      "rstd, " DLOPS_LSTM_OPTIONS "int[] needs, str variant) -> Tensor[]");
}

#define DLOPS_LSTM_IMPL(m)                      \
  m.impl("recurrence", TORCH_BOX(&recurrence)); \
  m.impl("recurrence_backward", TORCH_BOX(&recurrence_backward))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) {
  DLOPS_LSTM_IMPL(m);
  m.impl("recurrence_pack", TORCH_BOX(&recurrence_pack));
  m.impl("recurrent_cell", TORCH_BOX(&recurrent_cell));
}
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_LSTM_IMPL(m); }
#endif

}  // namespace dlops
