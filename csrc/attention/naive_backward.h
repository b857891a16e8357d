// The textbook's backward pass, one score at a time:
//
//   dP = dO . v     dS = P (drop dP - dO . O) + dlse exp(s - lse)
//   dq += dS k      dk += dS q      dv += P drop dO      dmask += dS
#pragma once
#include "naive_forward.h"

namespace dlops {
namespace {

// The derivative of the softcap at a score: 1 - tanh^2.
template <class T>
float softcap_slope_at(const AttentionProblem& p, const T* q, const T* k) {
  if (p.softcap <= 0) return 1;
  float product = 0;
  for (int64_t c = 0; c < p.d; c++) product += load1(q + c) * load1(k + c);
  const float t = __builtin_tanhf(p.scale * product / p.softcap);
  return 1 - t * t;
}

// What one key/value head gathers in an entry, in double: dk [k_len][d], dv [k_len][dv], and dq [d] of the row at hand.
struct NaiveSums { double *dk, *dv, *dq; };

template <class T>
void backward_row_naive(const AttentionBackwardParams& p, const attention::Sequence& s, int64_t b, int64_t h,
                        int64_t i, const NaiveSums& sums) {
  const int64_t kv = h / (p.heads / p.kv_heads), row = s.q_begin + i;
  const T *q = first_row<T>(p.q, b, h, row), *out = first_row<T>(p.out, b, h, row);
  const T* dout = first_row<T>(p.dout, b, h, row);
  const float lse = p.lse.data[b * p.lse.batch + h * p.lse.head + row];
  const float dlse = p.dlse.data ? p.dlse.data[b * p.dlse.batch + h * p.dlse.head + row] : 0;
  for (int64_t c = 0; c < p.d; c++) sums.dq[c] = 0;
  if (lse != kMinusInf) {
    // Of the weights' total, the keys have the part `keys_share` and the sink the rest.
    const double keys_share = p.sinks ? 1 / (1 + __builtin_exp(static_cast<double>(p.sinks[h]) - lse)) : 1;
    double dout_out = 0;
    for (int64_t c = 0; c < p.dv; c++) dout_out += load1(dout + c) * load1(out + c);
    if (p.dsinks) p.dsinks[h] -= static_cast<float>((1 - keys_share) * dout_out);
    const attention::Range keys = attention::keys_of_row(p, s, i);
    for (int64_t j = keys.begin; j < keys.end; j++) {
      const T *k = first_row<T>(p.k, b, kv, s.k_begin + j), *v = first_row<T>(p.v, b, kv, s.k_begin + j);
      const float score = score_at(p, s, b, h, i, j, q, k);
      if (score == kMinusInf) continue;
      const double share = __builtin_exp(static_cast<double>(score) - lse), weight = keys_share * share;
      const double drop = dropout_at(p, b, h, i, j);
      double dp = 0;
      for (int64_t c = 0; c < p.dv; c++) dp += load1(dout + c) * load1(v + c);
      const double ds = weight * (drop * dp - dout_out) + share * dlse;
      if (p.dmask.data)
        p.dmask.data[b * p.dmask.batch + h * p.dmask.head + i * p.dmask.row + j * p.dmask.key] +=
            static_cast<float>(ds);
      const double dproduct = ds * softcap_slope_at(p, q, k) * p.scale;
      for (int64_t c = 0; c < p.d; c++) sums.dq[c] += dproduct * load1(k + c);
      for (int64_t c = 0; c < p.d; c++) sums.dk[j * p.d + c] += dproduct * load1(q + c);
      for (int64_t c = 0; c < p.dv; c++) sums.dv[j * p.dv + c] += weight * drop * load1(dout + c);
    }
  }
  if (p.dq.data)
    for (int64_t c = 0; c < p.d; c++)
      store1(first_row<T>(p.dq, b, h, row) + c, static_cast<float>(sums.dq[c]));
}

template <class T>
void backward_naive_of(const AttentionBackwardParams& p) {
  const int64_t group = p.heads / p.kv_heads, width = p.d + p.dv;
  if (p.dmask.data)
    for (int64_t b = 0; b < p.batch; b++)
      for (int64_t h = 0; h < p.heads; h++)
        for (int64_t i = 0; i < p.q_len; i++)
          for (int64_t j = 0; j < p.k_len; j++)
            p.dmask.data[b * p.dmask.batch + h * p.dmask.head + i * p.dmask.row + j * p.dmask.key] = 0;
  // All heads may add to one element of dmask: then one thread does everything.
  parallel_for(p.dmask.data ? 1 : p.threads, p.kv_heads, [&](int64_t kv) {
    const size_t count = static_cast<size_t>(p.k_len * width + p.d);
    const cpu::Scratch scratch(count * sizeof(double));
    double* memory = reinterpret_cast<double*>(scratch.floats());
    const NaiveSums sums{memory, memory + p.k_len * p.d, memory + p.k_len * width};
    for (int64_t g = 0; p.dsinks && g < group; g++) p.dsinks[kv * group + g] = 0;
    for (int64_t b = 0; b < p.batch; b++) {
      const attention::Sequence s = attention::sequence_of(p, b);
      memset(memory, 0, count * sizeof(double));
      for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < s.q_len; i++) backward_row_naive<T>(p, s, b, kv * group + g, i, sums);
      // With the keys past key_lengths: their gradient is 0.
      const attention::Range stored =
          p.cu_k ? attention::packed(p.cu_k, b, p.total_k, p.k_len) : attention::Range{0, p.k_len};
      for (int64_t j = 0; j < stored.end - stored.begin; j++) {
        for (int64_t c = 0; p.dk.data && c < p.d; c++)
          store1(first_row<T>(p.dk, b, kv, s.k_begin + j) + c, static_cast<float>(sums.dk[j * p.d + c]));
        for (int64_t c = 0; p.dv_.data && c < p.dv; c++)
          store1(first_row<T>(p.dv_, b, kv, s.k_begin + j) + c, static_cast<float>(sums.dv[j * p.dv + c]));
      }
    }
  });
}

}  // namespace
}  // namespace dlops
