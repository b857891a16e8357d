// Sizes of the forward pass, and its scratch memory.
#pragma once
#include "cell.h"
#include "order.h"
#include "product.h"

namespace dlops {
namespace {

// Rows of the input that one reading of W_ih serves, where the sequence has them.
constexpr int64_t kChunkRows = 96;
// With fewer samples, the products of some groups are made before their gates, which then hide each other's latency.
constexpr int64_t kFewSamples = 4, kFewGroups = 4;

// Elements between rows of a state: whole vectors, an odd number of them, or rows would meet in few sets of a cache.
constexpr int64_t padded_row(int64_t width) { return (ceil_div(width, kLanes) | 1) * kLanes; }

struct ForwardSizes {
  Panels ih, hh, hr;
  int64_t state_row, hidden_row, input_row;
  int64_t slab_floats;  // of one thread's products
  int threads;
  bool gathers;  // x must be brought into order, or to another type
  bool apart;    // what W_hh multiplies is not h itself

  ForwardSizes(const RecurrenceParams& p, bool gathers, bool rounds)
      : ih{p.gates(), p.hidden, p.input},
        hh{p.gates(), p.hidden, p.state},
        hr{1, p.state, p.projects() ? p.hidden : 0},
        state_row(padded_row(p.state)),
        hidden_row(padded_row(p.hidden)),
        input_row(padded_row(p.input)),
        slab_floats(greater(p.batch, kFewSamples * kFewGroups) *
                    greater(hh.group_vectors(), hr.group_vectors()) * kLanes),
        threads(threads_of(p)),
        gathers(gathers),
        apart(rounds || p.reset || p.dropout) {}

  int64_t groups_at_once(int64_t samples) const { return samples < kFewSamples ? kFewGroups : 1; }

  // A barrier costs microseconds: a step must have more work than that for each thread.
  int threads_of(const RecurrenceParams& p) const {
    const int64_t flops = 2 * p.batch * p.gates() * p.hidden * (p.state + (p.x ? p.input : 0));
    const int64_t most = lesser(lesser(p.threads, hh.groups()), flops / 500000);
    return most < 1 ? 1 : static_cast<int>(most);
  }
};

// A packed weight: the caller's, or `own` memory that the pass packs.
struct PackedWeight {
  const float* data;
  float* own;
};

// Element: what rows of the products are made of, see product.h.
template <class Product>
struct ForwardBuffers {
  using Element = typename Product::Element;

  PackedWeight ih, hh, hr;
  float *bias, *norm_weight;  // [block][biases or gates][kLanes]
  float* h[2];                // [slot][state_row]: before and after a step, in turn
  Element* operand[2];        // [slot][state_row]: what W_hh multiplies
  float* c;                   // [slot][hidden_row]
  float *c_made, *o_made;     // [slot][hidden_row]: c' and o until c' is normalised
  Element* h_made;            // [slot][hidden_row]: h' until it is projected
  Element* x;                 // [chunk rows][input_row], where it gathers
  float *input, *products;    // slabs of W_ih x and W_hh h
  int64_t floats;             // of all

  // memory: null: counts only. elements: of all samples.
  ForwardBuffers(const RecurrenceParams& p, const ForwardSizes& z, int64_t elements, float* memory)
      : floats(0) {
    auto take = [&](bool wanted, int64_t count) -> float* {
      if (!wanted) return nullptr;
      float* part = memory ? memory + floats : nullptr;
      floats += ceil_div(count, 16) * 16;
      return part;
    };
    auto take_rows = [&](bool wanted, int64_t count) {
      return reinterpret_cast<Element*>(take(wanted, count));
    };
    auto weight = [&](bool used, const float* packed, const Panels& w) {
      float* own = take(used && !packed, Product::packed_floats(w));
      return PackedWeight{packed ? packed : own, own};
    };
    const int64_t state = p.batch * z.state_row, hidden = p.batch * z.hidden_row;
    // A chunk of several steps has at most kChunkRows rows; one of one step, all samples.
    const int64_t chunk = lesser(kChunkRows, elements), row = z.hh.groups() * z.hh.group_vectors() * kLanes;
    const int64_t own_slabs = z.threads * z.slab_floats;
    ih = weight(p.x, p.packed_ih, z.ih);
    hh = weight(true, p.packed_hh, z.hh);
    hr = weight(p.projects(), p.packed_hr, z.hr);
    bias = take(true, z.hh.blocks() * biases(p.cell) * kLanes);
    norm_weight = take(p.norm_weight, z.hh.vectors() * kLanes);
    for (int i = 0; i < 2; i++) {
      h[i] = take(true, state);
      operand[i] = z.apart ? take_rows(true, state) : reinterpret_cast<Element*>(h[i]);
    }
    c = take(true, hidden);
    c_made = take(p.cell_weight, hidden);
    o_made = take(p.cell_weight, hidden);
    h_made = take_rows(p.projects(), hidden);
    x = take_rows(z.gathers, greater(chunk, p.batch) * z.input_row);
    input = take(p.x, greater(chunk * row, own_slabs));
    products = take(true, p.norm_weight ? greater(p.batch * row, own_slabs) : own_slabs);
  }
};

}  // namespace
}  // namespace dlops
