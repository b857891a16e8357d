// From float32 sums in scratch to the result: activation(sum + bias + residual), rounded once.
#pragma once
#include <type_traits>

#include "../cpu/transpose.h"
#include "epilogue.h"

namespace dlops {
namespace {

template <Activation a>
struct Activate {
  DLOPS_INLINE Vec of(Vec x) { return activate(x, a); }
};

// f(Activate<a>()): the branch on the activation outside of f's loop.
template <class F>
DLOPS_INLINE void with_activation(Activation a, F f) {
  switch (a) {
    case Activation::none: return f(Activate<Activation::none>());
    case Activation::relu: return f(Activate<Activation::relu>());
    case Activation::silu: return f(Activate<Activation::silu>());
    case Activation::gelu: return f(Activate<Activation::gelu>());
    case Activation::tanh: return f(Activate<Activation::tanh>());
    case Activation::sigmoid: return f(Activate<Activation::sigmoid>());
  }
}

// n results that follow each other, all of one channel.
template <class T>
__attribute__((noinline)) void finish_run(const float* sums, int64_t n, float bias, const T* residual, T* y,
                                          Activation activation) {
  with_activation(activation, [&](auto a) {
    const Vec b = set1(bias);
    if (n < kLanes) {
      Vec v = load_part(sums, static_cast<int>(n)) + b;
      if (residual) v = v + load_part(residual, static_cast<int>(n));
      return store_part(y, a.of(v), static_cast<int>(n));
    }
    auto result = [&](int64_t i) {
      const Vec v = load(sums + i) + b;
      return a.of(residual ? v + load(residual + i) : v);
    };
    const Vec last =
        result(n - kLanes);  // reaches back; before anything is written, for y may be the residual
    for (int64_t i = 0; i + kLanes < n; i += kLanes) store(y + i, result(i));
    store(y + n - kLanes, last);
  });
}

// sums [blocks of channels, n pixels, kLanes] -> pixels of `count` channels, `pitch` elements apart.
template <class T>
__attribute__((noinline)) void finish_pixels(const float* sums, int64_t n, int64_t count, const T* bias,
                                             const T* residual, T* y, int64_t pitch, Activation activation) {
  const int64_t whole = count / kLanes * kLanes;
  const int rest = static_cast<int>(count - whole);
  with_activation(activation, [&](auto a) {
    for (int64_t i = 0; i < n; i++, y += pitch, residual = residual ? residual + pitch : nullptr) {
      const float* sum = sums + i * kLanes;
      for (int64_t c = 0; c < whole; c += kLanes) {
        Vec v = load(sum + c * n);
        if (bias) v = v + load(bias + c);
        if (residual) v = v + load(residual + c);
        store(y + c, a.of(v));
      }
      if (!rest) continue;
      Vec v = load(sum + whole * n);
      if (bias) v = v + load_part(bias + whole, rest);
      if (residual) v = v + load_part(residual + whole, rest);
      store_part(y + whole, a.of(v), rest);
    }
  });
}

// sums [n, kLanes] -> rows [kLanes, pitch]; n pixels, of which the last whole vector may reach past n.
DLOPS_INLINE void channels_apart(const float* sums, int64_t n, float* rows, int64_t pitch) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec v[kLanes];
    for (int k = 0; k < kLanes; k++) v[k] = load(sums + (i + k) * kLanes);
    transpose(v);
    for (int l = 0; l < kLanes; l++) store(rows + l * pitch + i, v[l]);
  }
}

}  // namespace
}  // namespace dlops
