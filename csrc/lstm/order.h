// The samples of a batch, longest first, so that those with an element at a step are the first ones: the products of a step
// multiply these rows and no others.
#pragma once
#include "params.h"

namespace dlops {
namespace {

// A sample's place in that order is its slot.
struct Order {
  const int64_t* samples;  // [B]: the sample in a slot; null: samples lie in this order already
  const int64_t* active;   // [T + 1]: slots with an element at step t
  const int64_t* first;    // [T + 1]: elements before step t
  int64_t steps;           // of the longest sample

  int64_t sample(int64_t slot) const { return samples ? samples[slot] : slot; }
};

constexpr int64_t order_entries(const RecurrenceProblem& p) { return p.batch + 2 * (p.steps + 1); }

inline bool lengths_decrease(const RecurrenceProblem& p) {
  for (int64_t b = 1; p.lengths && b < p.batch; b++)
    if (p.lengths[b] > p.lengths[b - 1]) return false;
  return true;
}

// A counting sort. entries: order_entries(p) of memory.
inline Order order_samples(const RecurrenceProblem& p, int64_t* entries) {
  int64_t *samples = entries, *active = samples + p.batch, *first = active + p.steps + 1;
  for (int64_t t = 0; t <= p.steps; t++) active[t] = 0;
  for (int64_t b = 0; b < p.batch; b++) active[p.length(b)]++;
  for (int64_t t = p.steps, longer = 0; t >= 0; t--) {
    const int64_t equal = active[t];
    active[t] = longer;  // those of length > t
    longer += equal;
  }
  const bool sorted = lengths_decrease(p);
  if (!sorted) {
    int64_t* next = first;  // the next slot for a sample of length t
    for (int64_t t = 0; t <= p.steps; t++) next[t] = active[t];
    for (int64_t b = 0; b < p.batch; b++) samples[next[p.lengths[b]]++] = b;
  }
  int64_t steps = 0;
  first[0] = 0;
  for (int64_t t = 0; t < p.steps; t++) {
    first[t + 1] = first[t] + active[t];
    if (active[t]) steps = t + 1;
  }
  return {sorted ? nullptr : samples, active, first, steps};
}

// Whether the elements lie in the order of steps and slots without a gap.
inline bool is_dense(const RecurrenceProblem& p, const Order& order) {
  if (order.samples || (!p.offsets && p.batch > 1 && p.batch_stride != 1)) return false;
  for (int64_t t = 1; t < order.steps; t++)
    if (p.row(t, 0) != p.row(0, 0) + order.first[t]) return false;
  return true;
}

}  // namespace
}  // namespace dlops
