// The torch face of the attention family: schemas, and the call of a CPU or CUDA table. The checks are in arguments.h.
#include "../cpu/isa.h"
#include "../torch/dispatch.h"
#include "arguments.h"
#include "cpu.h"
#include "launch.h"

#include <array>

namespace dlops {
namespace {

using namespace face;
using attention::Arguments;
using Tensors = std::vector<Tensor>;

constexpr auto kFamily = DLOPS_FAMILY(attention);

// A decoding step has a few rows per head: there, reading the keys is the work, and `split` spreads it over the keys and
// shares it between the heads of a group. Up to here it is the faster one (README.md). Depends on the shape of one sample only.
constexpr int64_t kFewRows = 8;
bool is_decode(const AttentionProblem& p) { return p.q_len <= kFewRows && !p.cu_q && p.dropout_p == 0; }

template <class Table>
auto forward_of(const char* op, const std::string& variant, const Table& table) {
  constexpr bool cuda = requires { table.pipelined; };
  if (variant == "split") return table.split;
  if (variant == "naive") return table.naive;
  if (variant == "tiled") return table.tiled;
  if constexpr (cuda) {
    if (variant == "online") return table.online;
    if (variant.empty() || variant == "pipelined") return table.pipelined;
  } else if (variant.empty()) {
    return table.tiled;
  }
  refuse(op, "unknown variant '", variant, "': this device has naive, ",
         cuda ? "online, tiled, pipelined" : "tiled", ", split");
}

std::tuple<Tensor, Tensor> attention_forward(Tensor q, Tensor k, Tensor v, OptionalTensor mask,
                                             OptionalTensor alibi_slopes, OptionalTensor sinks,
                                             OptionalTensor key_lengths, OptionalTensor cu_seqlens_q,
                                             OptionalTensor cu_seqlens_k, OptionalTensor rng, int64_t max_q,
                                             int64_t max_k, double scale, int64_t window_left,
                                             int64_t window_right, bool bottom_right, double softcap,
                                             double dropout_p, std::string variant) {
  const char* op = "attention";
  Arguments a{op,           q,   k,     v,     mask,  alibi_slopes, sinks,        key_lengths,  cu_seqlens_q,
              cu_seqlens_k, rng, max_q, max_k, scale, window_left,  window_right, bottom_right, softcap,
              dropout_p};
  AttentionForwardParams p{};
  a.fill(p);
  Tensor out = a.new_heads(q, p.dv), lse = new_floats(q, a.rows_shape());
  if (out.numel() == 0) return {out, lse};
  p.out = a.heads_out(out);
  p.lse = a.rows_out(lse);
  if (variant.empty() && is_decode(p)) variant = "split";
  if (variant == "split" && p.dropout_p > 0)
    refuse(op, "variant 'split' has no dropout: got dropout_p ", p.dropout_p);
  if (variant == "naive") p.scratch = AttentionScratch::naive;
  if (variant == "split") p.scratch = AttentionScratch::split;
  run(op, kFamily, q, p, [&](const auto& table) { return forward_of(op, variant, table); });
  return {out, lse};
}

void check_rows(const char* op, const char* name, const Tensor& t, const Arguments& a) {
  check_dtype(op, name, t, ScalarType::Float);
  check_device(op, name, t, a.q);
  const std::vector<int64_t> shape = a.rows_shape();
  const auto sizes = t.sizes();
  if (!std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end()))
    refuse(op, name, " has shape ", shape_of(t), ", which is not that of the rows of query");
}

// needs: dq, dk, dv, dmask, dsinks. Returns the gradients asked for, in that order.
Tensors attention_backward(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor out,
                           Tensor lse, OptionalTensor mask, OptionalTensor alibi_slopes, OptionalTensor sinks,
                           OptionalTensor key_lengths, OptionalTensor cu_seqlens_q,
                           OptionalTensor cu_seqlens_k, OptionalTensor rng, int64_t max_q, int64_t max_k,
                           double scale, int64_t window_left, int64_t window_right, bool bottom_right,
                           double softcap, double dropout_p, std::vector<int64_t> needs, bool deterministic,
                           std::string variant) {
  const char* op = "attention_backward";
  if (!variant.empty() && variant != "naive")
    refuse(op, "unknown variant '", variant, "': there is naive, beside the default");
  if (needs.size() != 5) refuse(op, "needs must have 5 flags: got ", needs.size());
  Arguments a{op,           q,   k,     v,     mask,  alibi_slopes, sinks,        key_lengths,  cu_seqlens_q,
              cu_seqlens_k, rng, max_q, max_k, scale, window_left,  window_right, bottom_right, softcap,
              dropout_p};
  AttentionBackwardParams p{};
  a.fill(p);
  check_like(op, "grad of out", dout, out);
  check_device(op, "out", out, q);
  check_dtype(op, "out", out, q.scalar_type());
  if (out.dim() != q.dim() || out.size(0) != q.size(0) || a.rows_of(out) != p.total_q ||
      out.size(1) != p.heads || a.width_of(out) != p.dv)
    refuse(op, "out has shape ", shape_of(out), ", which is not that of the result");
  check_rows(op, "lse", lse, a);
  const Tensor dout_ = attention::unit_rows(dout), out_ = attention::unit_rows(out),
               lse_ = face::contiguous(lse);
  OptionalTensor dlse_;
  if (dlse) {
    check_rows(op, "grad of lse", *dlse, a);
    dlse_ = face::contiguous(*dlse);
  }
  if (needs[3] && p.mask.kind == MaskKind::none)
    refuse(op, "needs asks for the gradient of an absent attn_mask");
  if (needs[3] && p.mask.kind == MaskKind::boolean) refuse(op, "a boolean attn_mask has no gradient");
  if (needs[4] && !p.sinks) refuse(op, "needs asks for the gradient of absent sinks");

  Tensors made;
  auto add = [&](int i, auto make) -> Tensor* {
    if (!needs[i]) return nullptr;
    made.push_back(make());
    return &made.back();
  };
  made.reserve(5);
  if (Tensor* t = add(0, [&] { return a.new_gradient(q); })) p.dq = a.heads_out(*t);
  if (Tensor* t = add(1, [&] { return a.new_gradient(k); })) p.dk = a.heads_out(*t);
  if (Tensor* t = add(2, [&] { return a.new_gradient(v); })) p.dv_ = a.heads_out(*t);
  if (Tensor* t = add(
          3, [&] { return new_floats(q, {mask->size(0), mask->size(1), mask->size(2), mask->size(3)}); })) {
    auto stride = [&](int i) { return t->size(i) == 1 ? 0 : t->stride(i); };
    p.dmask = {static_cast<float*>(t->mutable_data_ptr()), stride(0), stride(1), stride(2), stride(3)};
  }
  if (Tensor* t = add(4, [&] { return new_floats(q, {p.heads}); }))
    p.dsinks = static_cast<float*>(t->mutable_data_ptr());
  if (out.numel() == 0 || p.k_len == 0) {
    for (Tensor& t : made) torch::stable::zero_(t);
    return made;
  }
  p.dout = a.heads_in(dout_);
  p.out = a.heads_in(out_);
  p.lse = a.rows_in(lse_);
  if (dlse_) p.dlse = a.rows_in(*dlse_);
  p.deterministic = deterministic;
  run(op, kFamily, q, p,
      [&](const auto& table) { return variant.empty() ? table.backward : table.backward_naive; });
  return made;
}

// x [batch, heads, rows, d]; cos, sin [batch or 1, rows, rotary / 2].
Tensor rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool inverse) {
  const char* op = "rotary";
  RotaryParams p{};
  p.dtype = dtype_of(op, "x", x);
  if (x.dim() != 4) refuse(op, "x must be [batch, heads, length, d]: got shape ", shape_of(x));
  const std::pair<const char*, const Tensor*> tables[] = {{"cos", &cos}, {"sin", &sin}};
  for (auto [name, t] : tables) {
    check_device(op, name, *t, x);
    dtype_of(op, name, *t);
    if (t->dim() != 3 || (t->size(0) != 1 && t->size(0) != x.size(0)) || t->size(1) != x.size(2) ||
        2 * t->size(2) > std::min(x.size(3), attention::kMaxHeadDim))
      refuse(op, name, " has shape ", shape_of(*t), ", expected [1 or ", x.size(0), ", ", x.size(2),
             ", at most ", x.size(3) / 2, "]");
  }
  check_like(op, "sin", sin, cos);
  const Tensor x_ = attention::unit_rows(x), cos_ = face::contiguous(cos), sin_ = face::contiguous(sin);
  Tensor y = is_dense(x_) ? new_like(x_) : new_like(face::contiguous(x_));
  if (x.numel() == 0) return y;
  auto strides = [](const Tensor& t) {
    return std::array<int64_t, 3>{t.stride(0), t.stride(1), t.stride(2)};
  };
  const auto in = strides(x_), to = strides(y);
  p.x = {x_.const_data_ptr(), in[0], in[1], in[2]};
  p.y = {y.mutable_data_ptr(), to[0], to[1], to[2]};
  p.cos = cos_.const_data_ptr();
  p.sin = sin_.const_data_ptr();
  p.table_dtype = dtype_of(op, "cos", cos_);
  p.table_batch = cos.size(0) == 1 ? 0 : cos_.stride(0);
  p.table_row = cos.size(2);
  p.batch = x.size(0);
  p.heads = x.size(1);
  p.rows = x.size(2);
  p.d = x.size(3);
  p.rotary = 2 * cos.size(2);
  p.interleaved = interleaved;
  p.inverse = inverse;
  run(op, kFamily, x, p, [](const auto& table) { return table.rotary; });
  return y;
}

const bool registered = [] {
  for (const AttentionCpu* t : DLOPS_ALL(attention, &attention_avx512bf16))
    add_kernels(t->kernels, t->kernel_count);
#if DLOPS_WITH_CUDA
  add_kernels(attention_cuda.kernels, attention_cuda.kernel_count);
#endif
  return true;
}();

}  // namespace

const AttentionCpu& attention_cpu() { return DLOPS_CHOOSE(attention, &attention_avx512bf16); }

#define DLOPS_ATTENTION_OPTIONS                                                                      \
  "Tensor? mask, Tensor? alibi_slopes, Tensor? sinks, Tensor? key_lengths, Tensor? cu_seqlens_q, "   \
  "Tensor? cu_seqlens_k, Tensor? rng, SymInt max_q, SymInt max_k, float scale, SymInt window_left, " \
  "SymInt window_right, bool bottom_right, float softcap, float dropout_p, "

STABLE_TORCH_LIBRARY_FRAGMENT(dlops, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, " DLOPS_ATTENTION_OPTIONS
        "str variant) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor "
      "lse, " DLOPS_ATTENTION_OPTIONS "int[] needs, bool deterministic, str variant) -> Tensor[]");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool inverse) -> Tensor");
}

#define DLOPS_ATTENTION_IMPL(m)                                 \
  m.impl("attention", TORCH_BOX(&attention_forward));           \
  m.impl("attention_backward", TORCH_BOX(&attention_backward)); \
  m.impl("rotary", TORCH_BOX(&rotary))

STABLE_TORCH_LIBRARY_IMPL(dlops, CPU, m) { DLOPS_ATTENTION_IMPL(m); }
#if DLOPS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dlops, CUDA, m) { DLOPS_ATTENTION_IMPL(m); }
#endif

}  // namespace dlops
