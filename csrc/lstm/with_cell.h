// Host: f(std::integral_constant<Cell, c>()) for the cell that the argument names, and with the type too f(.., null T*).
#pragma once
#include <type_traits>

#include "../cuda/vec.h"
#include "params.h"

namespace dlops::lstm {

template <class F>
int with_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::lstm: return f(std::integral_constant<Cell, Cell::lstm>());
    case Cell::gru: return f(std::integral_constant<Cell, Cell::gru>());
    case Cell::rnn_tanh: return f(std::integral_constant<Cell, Cell::rnn_tanh>());
    case Cell::rnn_relu: return f(std::integral_constant<Cell, Cell::rnn_relu>());
  }
  return cudaErrorInvalidValue;
}

template <class F>
int with_cell_and_dtype(Cell cell, Dtype dtype, F f) {
  return with_dtype(dtype, [&](auto* t) { return with_cell(cell, [&](auto c) { return f(c, t); }); });
}

}  // namespace dlops::lstm
