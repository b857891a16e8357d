// From the products back to the image: y = activation(A^T M A + bias + residual).
#pragma once
#include "epilogue.h"
#include "winograd_image.h"

namespace dlops {
namespace {

// The epilogue. None and relu are one maximum; other activations are a rare branch.
template <class T>
struct Finish {
  Finish(const ConvEpilogue& e, void* result)
      : y(static_cast<T*>(result)),
        residual(static_cast<const T*>(e.residual)),
        floor(set1(e.activation == Activation::relu ? 0.f : -__builtin_inff())),
        activation(e.activation),
        curved(e.activation != Activation::none && e.activation != Activation::relu),
        plain(!e.residual && !curved) {}

  static __attribute__((noinline)) Vec curve(Vec v, Activation activation) { return activate(v, activation); }

  // `n` elements of the result, from `at` on; v already has the bias.
  DLOPS_INLINE void store_at(const Finish& f, int64_t at, Vec v, int n) {
    if (f.residual) v = v + (n == kLanes ? load(f.residual + at) : load_part(f.residual + at, n));
    v = max(f.floor, v);  // NaN stays
    if (__builtin_expect(f.curved, 0)) v = curve(v, f.activation);
    if (n == kLanes)
      store(f.y + at, v);
    else
      store_part(f.y + at, v, n);
  }

  T* y;
  const T* residual;
  Vec floor;
  Activation activation;
  bool curved, plain;  // an activation of the others; nothing but the floor
};

// The result's geometry: `filters` of a group from `first` on, of `channels` in all.
struct ResultShape {
  int64_t channels, first, filters, height, width;
  bool channels_last;
};

// A^T m A of one tile, kLanes filters: rows first, then columns. to [kOut][pitch][kLanes]
template <class Tile>
DLOPS_INLINE void transform_result(const float* m, int64_t plane, Vec bias, float* to, int64_t pitch) {
  constexpr int kIn = Tile::kIn, kOut = Tile::kOut;
  Vec rows[kOut][kIn];
#pragma GCC unroll 6
  for (int i = 0; i < kIn; i++) {
    Vec d[kIn], y[kOut];
#pragma GCC unroll 6
    for (int j = 0; j < kIn; j++) d[j] = load(m + (i * kIn + j) * plane);
    Tile::result(d, y);
#pragma GCC unroll 4
    for (int j = 0; j < kOut; j++) rows[j][i] = y[j];
  }
#pragma GCC unroll 4
  for (int j = 0; j < kOut; j++) {
    Vec y[kOut];
    Tile::result(rows[j], y);
#pragma GCC unroll 4
    for (int i = 0; i < kOut; i++) store(to + (i * pitch + j) * kLanes, y[i] + bias);
  }
}

// One row of a segment, strip [pixels][kLanes filters], to the result; `at` is the first pixel of the first filter.
template <class T>
DLOPS_INLINE void write_channels_last(const Finish<T>& finish, const float* strip, int64_t at,
                                      int64_t channels, int64_t pixels, int width) {
  if (finish.plain && width == kLanes)
    for (int64_t x = 0; x < pixels; x++)
      store(finish.y + at + x * channels, max(finish.floor, load(strip + x * kLanes)));
  else
    for (int64_t x = 0; x < pixels; x++)
      Finish<T>::store_at(finish, at + x * channels, load(strip + x * kLanes), width);
}
// Channels first: squares of pixels x filters turn.
template <class T>
DLOPS_INLINE void write_channels_first(const Finish<T>& finish, const float* strip, int64_t at, int64_t plane,
                                       int64_t pixels, int width) {
  vectors(pixels, [&](int64_t x, int n) {
    Vec v[kLanes];
    float turned[kLanes][kLanes];
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; k++) v[k] = load(strip + (x + k) * kLanes);
    transpose(v);
    if (finish.plain && n == kLanes && width == kLanes) {
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; k++) store(finish.y + at + k * plane + x, max(finish.floor, v[k]));
      return;
    }
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; k++) store(turned[k], v[k]);
    for (int k = 0; k < width; k++) Finish<T>::store_at(finish, at + k * plane + x, load(turned[k]), n);
  });
}

// The results of `count` segments from M[xi][tile][filter], and the bias by filters (readable in whole vectors).
template <class Tile, class T>
__attribute__((noinline)) void transform_results(const ResultShape& shape, const Tiling& tiling,
                                                 int64_t first, int64_t count, Planes m, const float* bias,
                                                 const Finish<T>& finish, float* strip, int64_t pitch) {
  for (int64_t s = 0; s < count; s++) {
    const Segment segment = tiling.segment(first + s);
    const int64_t y0 = segment.row * Tile::kOut, x0 = segment.column * Tile::kOut;
    const int64_t rows = smaller(Tile::kOut, shape.height - y0);
    const int64_t pixels = larger(smaller(tiling.tiles * Tile::kOut, shape.width - x0), 0);
    vectors(shape.filters, [&](int64_t f, int width) {
      const float* tile = m.data + s * tiling.tiles * m.row + f;
      for (int64_t t = 0; t < tiling.tiles; t++)
        transform_result<Tile>(tile + t * m.row, m.plane, load(bias + f), strip + t * Tile::kOut * kLanes,
                               pitch);
      for (int64_t i = 0; i < rows; i++) {
        const float* row = strip + i * pitch * kLanes;
        const int64_t filter = shape.first + f, y = y0 + i, plane = shape.height * shape.width;
        if (shape.channels_last)
          write_channels_last(finish, row,
                              (segment.sample * plane + y * shape.width + x0) * shape.channels + filter,
                              shape.channels, pixels, width);
        else
          write_channels_first(finish, row,
                               (segment.sample * shape.channels + filter) * plane + y * shape.width + x0,
                               plane, pixels, width);
      }
    });
  }
}

}  // namespace
}  // namespace dlops
