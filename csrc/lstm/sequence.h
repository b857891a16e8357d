// Where a sample is in its sequence, for kernels of either device.
#pragma once
#include "params.h"

namespace dlops {

// The `step`-th element that sample b goes through.
struct Place {
  bool there;        // the sample has so many elements
  bool first, last;  // of its elements, in the order of processing
  int64_t row;       // of x, y and the rest. Not there: the padding's row; a packed sequence has none
  int64_t before;    // row of the element processed before this one; meaningless at the first
};

static constexpr Place place(const RecurrenceProblem& p, int64_t step, int64_t b) {
  const int64_t length = p.length(b);
  const bool there = step < length, first = step == 0;
  const bool turned = p.reverse && there;  // padding lies behind the elements in either order
  const int64_t t = turned ? length - 1 - step : step;
  return {there, first, step == length - 1, p.row(t, b), first ? 0 : p.row(turned ? t + 1 : t - 1, b)};
}

}  // namespace dlops
