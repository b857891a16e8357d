// The element-wise half of one step: W_ih x and W_hh h are there, and one launch makes the new state of them, with all gates
// and options. A thread takes kUnits units with all of their gates. Bound by memory bandwidth.
#pragma once
#include "params.h"
#include "row_norm.cuh"

namespace dlops::lstm {

// Some units of sample b on their way through the step. kNorms: there may be LayerNorms.
template <Cell kCell, class T, bool kNorms>
struct GateStep {
  static constexpr int G = kGates<kCell>, S = kSaved<kCell>;
  const GatesParams& p;
  int64_t b;
  Normal gate_normal, c_normal;  // of W_hh h and of c'

  float product[kUnits][G];                 // W_hh h, then normalised
  float saved[kUnits][S];                   // the activated gates
  float c_before[kUnits], c_after[kUnits];  // lstm; after: before zoneout
  int64_t loaded_at = -1;                   // the first of the units that these are of
  bool activated = false;                   // saved and the cs too

  DLOPS_DEVICE GateStep(const GatesParams& p, int64_t b) : p(p), b(b), gate_normal{}, c_normal{} {}

  DLOPS_DEVICE void load(const Units& u) {
    if (loaded_at == u.first) return;  // a row that takes one turn stays in registers
    read_parts<T>(p.gates_h, b * G * p.hidden, p.hidden, u, product);
    loaded_at = u.first;
    activated = false;
  }

  DLOPS_DEVICE void add_to(Moments<float>& m, const Units& u) const {
#pragma unroll
    for (int gate = 0; gate < G; gate++) {
      float v[kUnits];
#pragma unroll
      for (int j = 0; j < kUnits; j++) v[j] = product[j][gate];
      m.add(v, u.count);
    }
  }

  DLOPS_DEVICE void normalise(const Units& u) {
    float weight[kUnits][G];
    read_parts<float>(p.norm_weight, 0, p.hidden, u, weight);
#pragma unroll
    for (int j = 0; j < kUnits; j++)
#pragma unroll
      for (int gate = 0; gate < G; gate++) product[j][gate] = gate_normal(product[j][gate]);
    write_parts<float>(p.hat, b * G * p.hidden, p.hidden, u, product);
#pragma unroll
    for (int j = 0; j < kUnits; j++)
#pragma unroll
      for (int gate = 0; gate < G; gate++) product[j][gate] *= weight[j][gate];
  }

  DLOPS_DEVICE void activate_units(const Units& u) {
    load(u);
    if (activated) return;
    if (kNorms && p.norm_weight) normalise(u);
    float x[kUnits][G], bias_x[kUnits][G], bias_h[kUnits][G];
    read_parts<T>(p.gates_x, b * G * p.hidden, p.hidden, u, x);
    read_parts<T>(p.b_ih, 0, p.hidden, u, bias_x);
    read_parts<T>(p.b_hh, 0, p.hidden, u, bias_h);
    if constexpr (kCell == Cell::lstm) read<T>(p.c, b * p.hidden, u, c_before);
#pragma unroll
    for (int j = 0; j < kUnits; j++) {
#pragma unroll
      for (int gate = 0; gate < G; gate++) {
        x[j][gate] += bias_x[j][gate];
        product[j][gate] += bias_h[j][gate];
      }
      activate<kCell>(x[j], product[j], saved[j]);
      if constexpr (kCell == Cell::lstm) c_after[j] = next_c(saved[j], c_before[j]);
    }
    write_parts<float>(p.saved, b * S * p.hidden, p.hidden, u, saved);
    activated = true;
  }

  DLOPS_DEVICE void finish(const Units& u) const {
    const int64_t row = b * p.hidden;
    float tanh_c[kUnits] = {}, share[kUnits], state[kUnits], h[kUnits];
    if constexpr (kCell == Cell::lstm) {
      float weight[kUnits], bias[kUnits];
      const bool normalise = kNorms && p.cell_weight;
      if (normalise) {
        read<float>(p.cell_weight, 0, u, weight);
        read<float>(p.cell_bias, 0, u, bias);
      }
      read_shares({p.keep_c, p.zoneout_c}, row, u, share);
#pragma unroll
      for (int j = 0; j < kUnits; j++) {
        tanh_c[j] = tanhf(normalise ? fmaf(c_normal(c_after[j]), weight[j], bias[j]) : c_after[j]);
        state[j] = mix(share[j], c_before[j], c_after[j]);
      }
      write<T>(p.c_out, row, u, state);
    }
    read<T>(p.h, row, u, h);
    read_shares({p.keep_h, p.zoneout_h}, row, u, share);
#pragma unroll
    for (int j = 0; j < kUnits; j++) state[j] = mix(share[j], h[j], next_h<kCell>(saved[j], h[j], tanh_c[j]));
    write<T>(p.h_out, row, u, state);
  }
};

constexpr KernelInfo kGatesPlain = DLOPS_GATES_KERNEL("gates", "4 units per thread", "gates_plain");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kRowThreads, 4) gates_plain(const GatesParams p, const bool wide) {
  for (int64_t b = first_row(); b < p.batch; b += row_step())
    for (int64_t chunk = first_chunk(1); chunk * kUnits < p.hidden; chunk += chunk_step(1)) {
      const Units u(chunk * kUnits, p.hidden, wide);
      GateStep<kCell, T, false> step(p, b);
      step.activate_units(u);
      step.finish(u);
    }
}

constexpr int kNormThreads = 512;  // at most: more would leave too few registers

// With LayerNorm of W_hh h, of c', or of both. What a row has beyond the first turn of its threads is computed again after
// each sum.
constexpr KernelInfo kGatesNorm =
    DLOPS_GATES_KERNEL("gates", "1 sample per warp or block", "gates_normalised");
template <Cell kCell, class T>
__global__ void __launch_bounds__(kNormThreads, 1) gates_normalised(const GatesParams p, const bool wide) {
  DLOPS_SHARED(Moments<float>, scratch, [32]);
  for (int64_t b = flat_row(); b < p.batch; b += flat_rows()) {
    GateStep<kCell, T, true> step(p, b);
    if (p.norm_weight) {
      Moments<float> m{};
      each_units(p.hidden, wide, [&](const Units& u) {
        step.load(u);
        step.add_to(m, u);
      });
      step.gate_normal = normal_of(sample_reduce(m, scratch), p.eps);
      SIMT_TRACE("rstd", step.gate_normal.rstd);
      if (p.rstd && threadIdx.x == 0) p.rstd[b] = step.gate_normal.rstd;
    }
    if (kCell == Cell::lstm && p.cell_weight) {
      Moments<float> m{};
      each_units(p.hidden, wide, [&](const Units& u) {
        step.activate_units(u);
        m.add(step.c_after, u.count);
      });
      step.c_normal = normal_of(sample_reduce(m, scratch), p.eps);
    }
    each_units(p.hidden, wide, [&](const Units& u) {
      step.activate_units(u);
      step.finish(u);
    });
  }
}

}  // namespace dlops::lstm
