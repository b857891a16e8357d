// The element-wise half of one step.
#include <type_traits>

#include "cpu_parts.h"
#include "gates.h"

namespace dlops::DLOPS_PARTS {
namespace {

// f(std::integral_constant<Cell, c>(), null pointer to the element type).
template <class P, class F>
DLOPS_INLINE void with_cell_and_type(const P& p, F f) {
  with_dtype(p.dtype, [&](auto* t) {
    switch (p.cell) {
      case Cell::lstm: return f(std::integral_constant<Cell, Cell::lstm>(), t);
      case Cell::gru: return f(std::integral_constant<Cell, Cell::gru>(), t);
      case Cell::rnn_tanh: return f(std::integral_constant<Cell, Cell::rnn_tanh>(), t);
      case Cell::rnn_relu: return f(std::integral_constant<Cell, Cell::rnn_relu>(), t);
    }
  });
}

}  // namespace

void gates(const GatesParams& p) {
  with_cell_and_type(p, [&](auto cell, auto* t) {
    for_rows(p.threads, p.batch, p.hidden,
             [&](int64_t b) { gates_row<decltype(cell)::value, std::remove_pointer_t<decltype(t)>>(p, b); });
  });
}

void gates_backward(const GatesBackwardParams& p) {
  with_cell_and_type(p, [&](auto cell, auto* t) {
    for_rows(p.threads, p.batch, p.hidden, [&](int64_t b) {
      gates_backward_row<decltype(cell)::value, std::remove_pointer_t<decltype(t)>>(p, b);
    });
  });
}

}  // namespace dlops::DLOPS_PARTS
