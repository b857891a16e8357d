// The derivative of the element-wise half of one step. With LayerNorm a sample's threads meet three times: for the moments of
// c', for the sums of its derivative, and for those of the derivative of W_hh h's LayerNorm.
#pragma once
#include "params.h"
#include "row_norm.cuh"

namespace dlops::lstm {

// Some units of sample b on their way back through the step. kNorms: there may be LayerNorms.
template <Cell kCell, class T, bool kNorms>
struct GateStepBack {
  static constexpr int G = kGates<kCell>, S = kSaved<kCell>;
  const GatesBackwardParams& p;
  int64_t b;
  Normal c_normal;      // of c'
  NormGradient c_back;  // of its derivative

  float saved[kUnits][S];
  float before[kUnits];                    // the state before the step: c (lstm), h (gru)
  float dh[kUnits], dc[kUnits];            // gradients of h' and c' before zoneout
  float dh_kept[kUnits], dc_kept[kUnits];  // what zoneout hands to the state before
  float c_after[kUnits];                   // lstm: c'
  Gradients<kCell> d[kUnits];
  int64_t loaded_at = -1;  // the first of the units that these are of
  bool derived = false;    // d too

  DLOPS_DEVICE GateStepBack(const GatesBackwardParams& p, int64_t b) : p(p), b(b), c_normal{}, c_back{} {}

  DLOPS_DEVICE void load(const Units& u) {
    if (loaded_at == u.first) return;
    const int64_t row = b * p.hidden;
    read_parts<float>(p.saved, b * S * p.hidden, p.hidden, u, saved);
    read<T>(kCell == Cell::lstm ? p.c : p.h, row, u, before);
    read<T>(p.dh_out, row, u, dh);
    split({p.keep_h, p.zoneout_h}, u, dh, dh_kept);
    if constexpr (kCell == Cell::lstm) {
      read<T>(p.dc_out, row, u, dc);
      split({p.keep_c, p.zoneout_c}, u, dc, dc_kept);
#pragma unroll
      for (int j = 0; j < kUnits; j++) c_after[j] = next_c(saved[j], before[j]);
    }
    loaded_at = u.first;
    derived = false;
  }

  // The gradient of a state after zoneout: that of the new one, and that of the old one.
  DLOPS_DEVICE void split(const Zoneout& z, const Units& u, float (&gradient)[kUnits],
                          float (&kept)[kUnits]) const {
    float share[kUnits];
    read_shares(z, b * p.hidden, u, share);
#pragma unroll
    for (int j = 0; j < kUnits; j++) {
      kept[j] = part(share[j], gradient[j]);
      gradient[j] = part(1.f - share[j], gradient[j]);
    }
  }

  DLOPS_DEVICE bool c_is_normalised() const { return kNorms && kCell == Cell::lstm && p.cell_weight; }

  // What comes to c' by the output's tanh, and by the LayerNorm between the two if there is one.
  struct Output {
    float tanh_c[kUnits], gradient[kUnits];  // of the tanh's argument
    float hat[kUnits], weighted[kUnits];     // c' normalised, and the gradient of that
  };
  DLOPS_DEVICE Output output(const Units& u) const {
    Output o{};
    float weight[kUnits], bias[kUnits];
    if (c_is_normalised()) {
      read<float>(p.cell_weight, 0, u, weight);
      read<float>(p.cell_bias, 0, u, bias);
    }
#pragma unroll
    for (int j = 0; j < kUnits; j++) {
      float argument = c_after[j];
      if (c_is_normalised()) {
        o.hat[j] = j < u.count ? c_normal(c_after[j]) : 0.f;
        argument = fmaf(o.hat[j], weight[j], bias[j]);
      }
      o.tanh_c[j] = tanhf(argument);
      o.gradient[j] = through_output(saved[j], dh[j], o.tanh_c[j]);
      o.weighted[j] = c_is_normalised() ? o.gradient[j] * weight[j] : 0.f;
    }
    return o;
  }

  DLOPS_DEVICE void derive_units(const Units& u) {
    load(u);
    if (derived) return;
    Output o{};
    if constexpr (kCell == Cell::lstm) o = output(u);
#pragma unroll
    for (int j = 0; j < kUnits; j++) {
      float dc_after = 0;
      if constexpr (kCell == Cell::lstm)
        dc_after = dc[j] + (c_is_normalised() ? c_back(o.weighted[j], o.hat[j]) : o.gradient[j]);
      d[j] = derive<kCell>(saved[j], before[j], dh[j], dc_after, o.tanh_c[j]);
    }
    derived = true;
  }

  // Gradients of the gates, g(unit, gate).
  template <class F>
  DLOPS_DEVICE void write_gates(void* to, const Units& u, F g) const {
    float v[kUnits][G];
#pragma unroll
    for (int j = 0; j < kUnits; j++)
#pragma unroll
      for (int gate = 0; gate < G; gate++) v[j][gate] = g(j, gate);
    write_parts<T>(to, b * G * p.hidden, p.hidden, u, v);
  }

  // All but dgates_h.
  DLOPS_DEVICE void write_out(const Units& u) const {
    write_gates(p.dgates_x, u, [&](int j, int gate) { return d[j].x[gate]; });
    float to_h[kUnits], to_c[kUnits];
#pragma unroll
    for (int j = 0; j < kUnits; j++) {
      to_h[j] = dh_kept[j] + (kCell == Cell::lstm ? 0.f : d[j].before);
      to_c[j] = kCell == Cell::lstm ? dc_kept[j] + d[j].before : 0.f;
    }
    write<T>(p.dh, b * p.hidden, u, to_h);
    if constexpr (kCell == Cell::lstm) write<T>(p.dc, b * p.hidden, u, to_c);
  }
};

constexpr KernelInfo kGatesBackwardPlain =
    DLOPS_GATES_KERNEL("gates_backward", "4 units per thread", "gates_backward_plain");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kRowThreads, 4)
    gates_backward_plain(const GatesBackwardParams p, const bool wide) {
  for (int64_t b = first_row(); b < p.batch; b += row_step())
    for (int64_t chunk = first_chunk(1); chunk * kUnits < p.hidden; chunk += chunk_step(1)) {
      const Units u(chunk * kUnits, p.hidden, wide);
      GateStepBack<kCell, T, false> step(p, b);
      step.derive_units(u);
      step.write_out(u);
      step.write_gates(p.dgates_h, u, [&](int j, int gate) { return step.d[j].h[gate]; });
    }
}

// ---- with LayerNorm ----

// A weight's gradient, summed over the samples of one part: only one thread ever has these units.
DLOPS_DEVICE void accumulate(float* sums, int64_t row, const Units& u, bool first, const float (&v)[kUnits]) {
  if (!sums) return;
  float sum[kUnits];
  read<float>(first ? nullptr : sums, row, u, sum);
#pragma unroll
  for (int j = 0; j < kUnits; j++) sum[j] += v[j];
  write<float>(sums, row, u, sum);
}

// The LayerNorm of c': its moments, then its derivative's sums, and the gradients of its weight and bias.
template <class Step>
DLOPS_DEVICE void back_through_c_norm(Step& step, bool wide, int64_t part, bool first,
                                      Moments<float>* moments, Sums<2>* scratch) {
  const GatesBackwardParams& p = step.p;
  Moments<float> m{};
  each_units(p.hidden, wide, [&](const Units& u) {
    step.load(u);
    m.add(step.c_after, u.count);
  });
  step.c_normal = normal_of(sample_reduce(m, moments), p.eps);
  Sums<2> sums{};
  each_units(p.hidden, wide, [&](const Units& u) {
    step.load(u);
    const typename Step::Output o = step.output(u);
    float dweight[kUnits];
#pragma unroll
    for (int j = 0; j < kUnits; j++) {  // where there is no unit dh was read as 0
      sums.v[0] += o.weighted[j];
      sums.v[1] += o.weighted[j] * o.hat[j];
      dweight[j] = o.gradient[j] * o.hat[j];
    }
    accumulate(p.dcell_weight, part * p.hidden, u, first, dweight);
    accumulate(p.dcell_bias, part * p.hidden, u, first, o.gradient);
  });
  step.c_back = norm_gradient(step.c_normal.rstd, sample_reduce(sums, scratch), p.hidden);
}

// The LayerNorm of W_hh h: the terms of its derivative's sums, the gradient of its weight, and db_hh's rows.
template <class Step>
DLOPS_DEVICE void add_gate_sums(const Step& step, const Units& u, int64_t part, bool first, Sums<2>& sums) {
  const GatesBackwardParams& p = step.p;
  step.write_gates(p.db_hh_rows, u, [&](int j, int gate) { return step.d[j].h[gate]; });
#pragma unroll
  for (int gate = 0; gate < Step::G; gate++) {
    float weight[kUnits], hat[kUnits], dweight[kUnits];
    read<float>(p.norm_weight, gate * p.hidden, u, weight);
    read<float>(p.hat, (step.b * Step::G + gate) * p.hidden, u, hat);
#pragma unroll
    for (int j = 0; j < kUnits; j++) {  // where there is no unit these were read as 0
      const float g = step.d[j].h[gate];
      sums.v[0] += g * weight[j];
      sums.v[1] += g * weight[j] * hat[j];
      dweight[j] = g * hat[j];
    }
    accumulate(p.dnorm_weight, (part * Step::G + gate) * p.hidden, u, first, dweight);
  }
}

// dgates_h behind the LayerNorm.
template <class Step>
DLOPS_DEVICE void write_gates_h(const Step& step, const Units& u, const NormGradient& back) {
  const GatesBackwardParams& p = step.p;
  float weight[kUnits][Step::G], hat[kUnits][Step::G];
  read_parts<float>(p.norm_weight, 0, p.hidden, u, weight);
  read_parts<float>(p.hat, step.b * Step::G * p.hidden, p.hidden, u, hat);
  step.write_gates(p.dgates_h, u,
                   [&](int j, int gate) { return back(step.d[j].h[gate] * weight[j][gate], hat[j][gate]); });
}

constexpr int kNormBackThreads = 256;  // at most: of twice as many, some registers would spill

// The samples part, part + parts, ... go through the same threads, which add up the weights' gradients in that order.
constexpr KernelInfo kGatesBackwardNorm =
    DLOPS_GATES_KERNEL("gates_backward", "1 sample per warp or block", "gates_backward_normalised");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kNormBackThreads, 1)
    gates_backward_normalised(const GatesBackwardParams p, const int64_t parts, const bool wide) {
  DLOPS_SHARED(Moments<float>, moments, [32]);
  DLOPS_SHARED(Sums<2>, scratch, [32]);
  for (int64_t part = flat_row(); part < parts; part += flat_rows())
    for (int64_t b = part; b < p.batch; b += parts) {
      const bool first = b == part;
      GateStepBack<kCell, T, true> step(p, b);
      if constexpr (kCell == Cell::lstm)
        if (p.cell_weight) back_through_c_norm(step, wide, part, first, moments, scratch);
      Sums<2> sums{};
      each_units(p.hidden, wide, [&](const Units& u) {
        step.derive_units(u);
        step.write_out(u);
        if (p.norm_weight)
          add_gate_sums(step, u, part, first, sums);
        else
          step.write_gates(p.dgates_h, u, [&](int j, int gate) { return step.d[j].h[gate]; });
      });
      if (!p.norm_weight) continue;
      const NormGradient back =
          norm_gradient(p.rstd[b], sample_reduce(sums, scratch), kGates<kCell> * p.hidden);
      each_units(p.hidden, wide, [&](const Units& u) {
        step.derive_units(u);
        write_gates_h(step, u, back);
      });
    }
}

}  // namespace dlops::lstm
