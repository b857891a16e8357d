// The arguments that every attention op shares: checked, made addressable, and written into the problem struct. Holds the
// copies it makes until the call is over.
#pragma once
#include <cmath>

#include "../torch/empty.h"
#include "params.h"

namespace dlops::attention {

using face::OptionalTensor;
using face::refuse;
using face::ScalarType;
using face::shape_of;
using face::Tensor;

constexpr int64_t kMaxHeadDim = 256;

// The last dimension side by side, as every kernel wants it; other layouts are copied.
inline Tensor unit_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

// q, k, v are [batch, heads, rows, d]; packed [rows, heads, d]. A dimension of size 1 has stride 0 here.
struct Arguments {
  const char* op;
  Tensor q, k, v;
  OptionalTensor mask, alibi_slopes, sinks, key_lengths, cu_q, cu_k, rng;
  int64_t max_q, max_k;
  double scale;
  int64_t window_left, window_right;
  bool bottom_right;
  double softcap, dropout_p;

  bool packed() const { return cu_q.has_value(); }
  int64_t sequences() const { return packed() ? cu_q->size(0) - 1 : q.size(0); }
  int64_t heads_of(const Tensor& t) const { return t.size(1); }
  int64_t rows_of(const Tensor& t) const { return t.size(packed() ? 0 : 2); }
  static int64_t width_of(const Tensor& t) { return t.size(t.dim() - 1); }

  int64_t batch_stride(const Tensor& t) const { return packed() || t.size(0) <= 1 ? 0 : t.stride(0); }
  int64_t row_stride(const Tensor& t) const { return t.stride(packed() ? 0 : 2); }

  HeadsIn heads_in(const Tensor& t) const {
    return {t.const_data_ptr(), batch_stride(t), t.stride(1), row_stride(t)};
  }
  HeadsOut heads_out(Tensor& t) const {
    return {t.mutable_data_ptr(), batch_stride(t), t.stride(1), row_stride(t)};
  }
  // [batch, heads, rows]; packed [heads, rows].
  RowsIn rows_in(const Tensor& t) const {
    return {static_cast<const float*>(t.const_data_ptr()), packed() ? 0 : t.stride(0),
            t.stride(packed() ? 0 : 1)};
  }
  RowsOut rows_out(Tensor& t) const {
    return {static_cast<float*>(t.mutable_data_ptr()), packed() ? 0 : t.stride(0),
            t.stride(packed() ? 0 : 1)};
  }
  std::vector<int64_t> rows_shape() const {
    return packed() ? std::vector<int64_t>{q.size(1), q.size(0)}
                    : std::vector<int64_t>{q.size(0), q.size(1), q.size(2)};
  }

  // [batch, heads, rows, width] in the memory order batch, rows, heads, width: the heads of a row side by side, as the
  // linear layer that follows reads them. Packed tensors are in that order by shape.
  Tensor new_heads(const Tensor& like, int64_t width) const {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    const int64_t h = like.size(1), rows = rows_of(like);
    const int64_t sizes[] = {packed() ? rows : like.size(0), h, packed() ? width : rows, width};
    const int64_t packed_strides[] = {h * width, width, 1},
                  strides[] = {rows * h * width, width, h * width, 1};
    return face::new_strided(like, packed() ? 3 : 4, sizes, packed() ? packed_strides : strides, dtype);
  }
  // A gradient: the layout of its tensor where a kernel can write that one, or else that of new_heads.
  Tensor new_gradient(const Tensor& like) const {
    const bool writable = face::is_dense(like) && like.stride(like.dim() - 1) == 1;
    return writable ? face::new_like(like) : new_heads(like, width_of(like));
  }

  // Checks everything and writes it down. Call once, first: it replaces the tensors by addressable ones.
  void fill(AttentionProblem& p) {
    if (cu_q.has_value() != cu_k.has_value())
      refuse(op, "cu_seqlens_q and cu_seqlens_k go together: got one of them");
    check_heads(p);
    check_lengths(p);
    check_extras(p);
    p.q = heads_in(q = unit_rows(q));
    p.k = heads_in(k = unit_rows(k));
    p.v = heads_in(v = unit_rows(v));
    // Added to positions: a window past every length is cut before it can overflow.
    p.window_left = std::min(window_left, int64_t{1} << 40);
    p.window_right = std::min(window_right, int64_t{1} << 40);
    p.scale = static_cast<float>(scale);
    p.softcap = static_cast<float>(softcap);
    p.dropout_p = static_cast<float>(dropout_p);
    p.bottom_right = bottom_right;
  }

 private:
  void check_heads(AttentionProblem& p) const {
    p.dtype = face::dtype_of(op, "query", q);
    const int64_t dims = packed() ? 3 : 4;
    const std::pair<const char*, const Tensor*> all[] = {{"query", &q}, {"key", &k}, {"value", &v}};
    for (auto [name, t] : all) {
      if (t->dim() != dims)
        refuse(op, name, packed() ? " must be [total, heads, d]" : " must be [batch, heads, length, d]",
               ": got shape ", shape_of(*t));
      face::check_device(op, name, *t, q);
      face::check_dtype(op, name, *t, q.scalar_type());
      if (!packed() && t->size(0) != q.size(0))
        refuse(op, name, " has batch size ", t->size(0), ", expected ", q.size(0));
      const int64_t width = width_of(*t);
      if (width < 1 || width > kMaxHeadDim)
        refuse(op, name, " must have a head dimension of 1 to ", kMaxHeadDim, ": got ", width);
    }
    if (width_of(k) != width_of(q))
      refuse(op, "key has head dimension ", width_of(k), ", expected that of query, ", width_of(q));
    if (rows_of(v) != rows_of(k))
      refuse(op, "value has length ", rows_of(v), ", expected that of key, ", rows_of(k));
    if (heads_of(v) != heads_of(k))
      refuse(op, "value has ", heads_of(v), " heads, expected those of key, ", heads_of(k));
    if (heads_of(k) < 1 || heads_of(q) % heads_of(k))
      refuse(op, "query must have a multiple of the ", heads_of(k), " heads of key: got ", heads_of(q));
    p.batch = sequences();
    p.heads = heads_of(q);
    p.kv_heads = heads_of(k);
    p.total_q = rows_of(q);
    p.total_k = rows_of(k);
    // The stated maxima may be a model's context: no sequence is longer than all of them together.
    p.q_len = packed() ? std::min(max_q, p.total_q) : p.total_q;
    p.k_len = packed() ? std::min(max_k, p.total_k) : p.total_k;
    p.d = width_of(q);
    p.dv = width_of(v);
  }

  void check_int32(const char* name, const Tensor& t, int64_t size) const {
    face::check_dtype(op, name, t, ScalarType::Int);
    face::check_device(op, name, t, q);
    if (t.dim() != 1 || t.size(0) != size)
      refuse(op, name, " has shape ", shape_of(t), ", expected [", size, "]");
  }

  // Where the values can be read without waiting for a GPU, they are checked; kernels clamp them anyway.
  void check_packed(const char* name, const Tensor& t, int64_t total, int64_t longest) const {
    if (!t.is_cpu()) return;
    const auto* cu = static_cast<const int32_t*>(t.const_data_ptr());
    const int64_t n = t.size(0) - 1;
    if (cu[0] != 0) refuse(op, name, " must start at 0: got ", cu[0]);
    for (int64_t b = 0; b < n; b++) {
      if (cu[b + 1] < cu[b]) refuse(op, name, " must ascend: got ", cu[b], " and then ", cu[b + 1]);
      if (cu[b + 1] - cu[b] > longest)
        refuse(op, name, " has a sequence of ", cu[b + 1] - cu[b], ", longer than the stated maximum ",
               longest);
    }
    if (cu[n] != total) refuse(op, name, " must end at the total length ", total, ": got ", cu[n]);
  }

  void check_lengths(AttentionProblem& p) {
    if (packed()) {
      if (cu_q->dim() != 1 || cu_q->size(0) < 1)
        refuse(op, "cu_seqlens_q must be [sequences + 1]: got shape ", shape_of(*cu_q));
      check_int32("cu_seqlens_q", *cu_q, p.batch + 1);
      check_int32("cu_seqlens_k", *cu_k, p.batch + 1);
      cu_q = face::contiguous(*cu_q);
      cu_k = face::contiguous(*cu_k);
      check_packed("cu_seqlens_q", *cu_q, p.total_q, max_q);
      check_packed("cu_seqlens_k", *cu_k, p.total_k, max_k);
      p.cu_q = static_cast<const int32_t*>(cu_q->const_data_ptr());
      p.cu_k = static_cast<const int32_t*>(cu_k->const_data_ptr());
      if (key_lengths) refuse(op, "key_lengths must be absent where sequences are packed");
      if (mask) refuse(op, "attn_mask must be absent where sequences are packed");
    }
    if (key_lengths) {
      check_int32("key_lengths", *key_lengths, p.batch);
      key_lengths = face::contiguous(*key_lengths);
      p.key_lengths = static_cast<const int32_t*>(key_lengths->const_data_ptr());
      if (key_lengths->is_cpu())
        for (int64_t b = 0; b < p.batch; b++)
          if (p.key_lengths[b] < 0 || p.key_lengths[b] > p.k_len)
            refuse(op, "key_lengths must be 0 to ", p.k_len, ": got ", p.key_lengths[b]);
    }
  }

  void check_extras(AttentionProblem& p) {
    if (mask) fill_mask(p);
    if (alibi_slopes) {
      const Tensor& t = *alibi_slopes;
      const bool per_sample = t.dim() == 2;
      if (t.dim() < 1 || t.dim() > 2 || t.size(t.dim() - 1) != p.heads ||
          (per_sample && t.size(0) != p.batch))
        refuse(op, "alibi_slopes has shape ", shape_of(t), ", expected [", p.heads, "] or [", p.batch, ", ",
               p.heads, "]");
      alibi_slopes = float_vector("alibi_slopes", t);
      p.alibi_slopes = static_cast<const float*>(alibi_slopes->const_data_ptr());
      p.alibi_batch = per_sample ? p.heads : 0;
    }
    if (sinks) {
      if (sinks->dim() != 1 || sinks->size(0) != p.heads)
        refuse(op, "sinks has shape ", shape_of(*sinks), ", expected [", p.heads, "]");
      sinks = float_vector("sinks", *sinks);
      p.sinks = static_cast<const float*>(sinks->const_data_ptr());
    }
    if (!(softcap >= 0 && std::isfinite(softcap)))
      refuse(op, "softcap must be 0 (none) or positive: got ", softcap);
    if (!(dropout_p >= 0 && static_cast<float>(dropout_p) < 1))
      refuse(op, "dropout_p must be in [0, 1): got ", dropout_p);
    if (dropout_p > 0) {
      if (!rng) refuse(op, "rng must be given where dropout_p > 0");
      face::check_dtype(op, "rng", *rng, ScalarType::Long);
      face::check_device(op, "rng", *rng, q);
      if (rng->numel() != 2) refuse(op, "rng must hold seed and offset: got shape ", shape_of(*rng));
      rng = face::contiguous(*rng);
      p.rng = static_cast<const int64_t*>(rng->const_data_ptr());
    }
  }

  Tensor float_vector(const char* name, const Tensor& t) const {
    face::check_device(op, name, t, q);
    face::dtype_of(op, name, t);
    return face::contiguous(t.scalar_type() == ScalarType::Float ? t
                                                                 : torch::stable::to(t, ScalarType::Float));
  }

  void fill_mask(AttentionProblem& p) const {
    const Tensor& t = *mask;
    face::check_device(op, "attn_mask", t, q);
    const int64_t full[] = {p.batch, p.heads, p.q_len, p.k_len};
    bool fits = t.dim() == 4;
    for (int i = 0; fits && i < 4; i++) fits = t.size(i) == full[i] || t.size(i) == 1;
    if (!fits)
      refuse(op, "attn_mask has shape ", shape_of(t), ", which does not broadcast to [", full[0], ", ",
             full[1], ", ", full[2], ", ", full[3], "]");
    if (t.scalar_type() == ScalarType::Bool) {
      p.mask.kind = MaskKind::boolean;
    } else {
      switch (face::dtype_of(op, "attn_mask", t)) {
        case Dtype::f32: p.mask.kind = MaskKind::f32; break;
        case Dtype::f16: p.mask.kind = MaskKind::f16; break;
        case Dtype::bf16: p.mask.kind = MaskKind::bf16; break;
      }
    }
    auto stride = [&](int i) { return t.size(i) == 1 ? 0 : t.stride(i); };
    p.mask = {t.const_data_ptr(), p.mask.kind, stride(0), stride(1), stride(2), stride(3)};
  }
};

}  // namespace dlops::attention
