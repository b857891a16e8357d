// From an image to the planes of its transformed tiles: what the forward pass does to x, and the weight pass to x and dy.
//
// A strip is one row of tiles and kLanes channels after the vertical transform, channels in lanes: [rows][columns][kLanes],
// small enough for L1. The horizontal transform takes it to the planes V[xi][tile][channel] of a matrix product each.
#pragma once
#include "../cpu/transpose.h"
#include "params.h"

namespace dlops {
namespace {

DLOPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DLOPS_INLINE int64_t whole_vectors(int64_t n) { return ceil_div(n, kLanes) * kLanes; }

// f(at, width) for the vectors of [0, n). The last one overlaps its neighbour where n is no multiple: doing an element
// twice is cheaper than a partial vector. Only n < kLanes has width n.
template <class F>
DLOPS_INLINE void vectors(int64_t n, F f) {
  const int width = static_cast<int>(smaller(n, kLanes));
  for (int64_t i = 0; i < n; i += kLanes) f(larger(smaller(i, n - kLanes), 0), width);
}

// The tiles of a batch, cut into segments: a row of tiles of one sample, or equal parts of a row that is long. Of the last
// part, tiles may lie outside of the image: they read zeros, and their results go nowhere.
struct Segment { int64_t sample, row, column; };
struct Tiling {
  // A strip of 64 columns is what L1 holds.
  Tiling(int64_t batch, int64_t height, int64_t width, int tile) : rows(ceil_div(height, tile)) {
    const int64_t columns = ceil_div(width, tile);
    per_row = ceil_div(columns, 62 / tile);
    tiles = ceil_div(columns, per_row);
    count = batch * rows * per_row;
  }
  Segment segment(int64_t i) const {
    const int64_t row = i / per_row;
    return {row / rows, row % rows, i % per_row * tiles};
  }
  int64_t rows;            // of tiles, in a sample
  int64_t tiles, per_row;  // of a segment; segments of a row
  int64_t count;           // of segments
};

// A tensor of images as a kernel reads it: element (y, x) lies `top`, `left` further than tile (0, 0) begins. What is
// outside follows the padding mode; from `bottom` and `right` on nothing is needed, and zeros are read.
template <class T>
struct Image {
  const T* tensor;
  int64_t elements;                // of the tensor
  int64_t channels, first, group;  // of the tensor; this group's first channel and how many it has
  int64_t height, width, top, left, bottom, right;
  PaddingMode mode;
  bool channels_last;

  // Where element i of an axis of n comes from; -1: it is a zero.
  static int64_t source(int64_t i, int64_t n, int64_t before, int64_t end, PaddingMode mode) {
    if (i < -before || i >= end) return -1;
    if (i >= 0 && i < n) return i;
    switch (mode) {
      case PaddingMode::zeros: return -1;
      case PaddingMode::reflect: return i < 0 ? -i : 2 * n - 2 - i;
      case PaddingMode::replicate: return i < 0 ? 0 : n - 1;
      case PaddingMode::circular: return i < 0 ? i + n : i - n;
    }
    return -1;
  }
  int64_t source_row(int64_t y) const { return source(y, height, top, bottom, mode); }
  int64_t source_column(int64_t x) const { return source(x, width, left, right, mode); }
};

// The channels of one group of x, for the forward pass and for the weight pass.
template <class T>
Image<T> source_image(const ConvProblem& p, const void* x, int64_t group) {
  const int64_t channels = p.group_channels();
  return {static_cast<const T*>(x),
          p.batch * p.channels * p.in_pixels(),
          p.channels,
          group * channels,
          channels,
          p.in[1],
          p.in[2],
          p.padding[1],
          p.padding[2],
          p.out[1] + 2 - p.padding[1],
          p.out[2] + 2 - p.padding[2],
          p.padding_mode,
          p.channels_last};
}

// kLanes neighbours of a row, from column x0 on, some of them perhaps outside of the image.
template <class T>
class RowReader {
 public:
  RowReader(const Image<T>& image, int64_t x0) : image_(image), x0_(x0) {
    const int64_t end = smaller(image.width, image.right);
    whole_ = x0 >= 0 && x0 + kLanes <= end;
    masked_ = image.mode == PaddingMode::zeros;
    const VecI x = lane_index() + static_cast<int32_t>(smaller(larger(x0, -kLanes), end));
    keep_ = (x >= 0) & (x < static_cast<int32_t>(end));
  }
  // The row begins at element `row` of the tensor.
  DLOPS_INLINE Vec read(const RowReader& r, int64_t row) {
    const int64_t at = row + r.x0_;
    if (r.whole_) return load(r.image_.tensor + at);
    if (r.masked_ && at >= 0 &&
        at + kLanes <= r.image_.elements)  // neighbours in memory are read and cleared
      return as<Vec>(as<VecI>(load(r.image_.tensor + at)) & r.keep_);
    return r.lane_by_lane(row);
  }

 private:
  __attribute__((noinline)) Vec lane_by_lane(int64_t row) const {
    float lane[kLanes];
    for (int i = 0; i < kLanes; i++) {
      const int64_t x = image_.source_column(x0_ + i);
      lane[i] = x < 0 ? 0.f : load1(image_.tensor + row + x);
    }
    return load(lane);
  }
  const Image<T>& image_;
  int64_t x0_;
  bool whole_, masked_;
  VecI keep_;
};

// What a strip is made of: `width` channels from `channel` on, columns from x0 on, and the image rows of one row of tiles.
template <int kRead>
struct Window {
  int64_t sample, channel;
  int width;
  int64_t x0, columns;
  int64_t rows[kRead];  // -1: zeros
};

template <class T>
DLOPS_INLINE Vec load_channels(const T* p, int width) {
  return width == kLanes ? load(p) : load_part(p, width);
}

template <int kRead, int kWrite, bool kInside, class T, class Vertical>
DLOPS_INLINE void strip_columns(const Image<T>& image, const Window<kRead>& w, const T* const (&rows)[kRead],
                                float* strip, int64_t pitch, Vertical vertical) {
  const int64_t end = smaller(image.width, image.right);
  for (int64_t j = 0; j < w.columns; j++) {
    int64_t x = w.x0 + j;
    if (x < 0 || x >= end) x = image.source_column(x);
    Vec d[kRead], u[kWrite];
    if (kInside && x >= 0) {
#pragma GCC unroll 6
      for (int r = 0; r < kRead; r++) d[r] = load(rows[r] + x * image.channels);
    } else {
#pragma GCC unroll 6
      for (int r = 0; r < kRead; r++)
        d[r] = x < 0 || !rows[r] ? zero() : load_channels(rows[r] + x * image.channels, w.width);
    }
    vertical(d, u);
#pragma GCC unroll 6
    for (int i = 0; i < kWrite; i++) store(strip + (i * pitch + j) * kLanes, u[i]);
  }
}

// Channels last: lanes as they lie in memory.
template <int kRead, int kWrite, class T, class Vertical>
DLOPS_INLINE void strip_channels_last(const Image<T>& image, const Window<kRead>& w, float* strip,
                                      int64_t pitch, Vertical vertical) {
  const int64_t row = image.width * image.channels;
  const T *base = image.tensor + w.sample * image.height * row + image.first + w.channel, *rows[kRead];
  bool inside = w.width == kLanes;
  for (int r = 0; r < kRead; r++) {
    rows[r] = w.rows[r] < 0 ? nullptr : base + w.rows[r] * row;
    inside &= w.rows[r] >= 0;
  }
  if (inside)
    strip_columns<kRead, kWrite, true>(image, w, rows, strip, pitch, vertical);
  else
    strip_columns<kRead, kWrite, false>(image, w, rows, strip, pitch, vertical);
}

// Channels first: columns in lanes for the vertical transform, then squares of kLanes channels x kLanes columns turn.
template <int kRead, int kWrite, class T, class Vertical>
DLOPS_INLINE void strip_channels_first(const Image<T>& image, const Window<kRead>& w, float* strip,
                                       int64_t pitch, Vertical vertical) {
  const int64_t plane = image.height * image.width;
  const int64_t base = (w.sample * image.channels + image.first + w.channel) * plane;
  alignas(64) float turning[kWrite * kLanes * kLanes];
  for (int64_t j = 0; j < w.columns; j += kLanes) {
    const RowReader<T> reader(image, w.x0 + j);
    for (int c = 0; c < kLanes; c++) {
      Vec d[kRead], u[kWrite];
#pragma GCC unroll 6
      for (int r = 0; r < kRead; r++) {
        const bool zeros = w.rows[r] < 0 || c >= w.width;
        d[r] = zeros ? zero() : RowReader<T>::read(reader, base + c * plane + w.rows[r] * image.width);
      }
      vertical(d, u);
#pragma GCC unroll 6
      for (int i = 0; i < kWrite; i++) store(turning + (i * kLanes + c) * kLanes, u[i]);
    }
    for (int i = 0; i < kWrite; i++) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; c++) v[c] = load(turning + (i * kLanes + c) * kLanes);
      transpose(v);
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; c++) store(strip + (i * pitch + j + c) * kLanes, v[c]);
    }
  }
}

// The planes of a block of tiles: V[xi][tile][channel], tiles `row` floats apart and planes `plane`.
struct Planes {
  float* data;
  int64_t row, plane;
};

// Columns of a strip's row, odd: rows must not lie a power of two apart.
inline int64_t strip_pitch(int64_t tiles, int tile, int read) {
  return whole_vectors(tiles * tile + read - tile) + 1;
}

// Transforms `count` segments. A tile reads kRead x kRead elements, the next one begins kStep further; kRows rows come out
// of vertical(d [kRead], u [kRows]), kIn columns out of horizontal(d [kRead], u [kIn]): kRows kIn planes.
template <int kStep, int kRead, int kRows, int kIn, class T, class Vertical, class Horizontal>
__attribute__((noinline)) void transform_tiles(const Image<T>& image, const Tiling& tiling, int64_t first,
                                               int64_t count, Planes to, float* strip, Vertical vertical,
                                               Horizontal horizontal) {
  const int64_t pitch = strip_pitch(tiling.tiles, kStep, kRead);
  for (int64_t s = 0; s < count; s++) {
    const Segment segment = tiling.segment(first + s);
    Window<kRead> window;
    window.sample = segment.sample;
    window.x0 = segment.column * kStep - image.left;
    window.columns = tiling.tiles * kStep + kRead - kStep;
    for (int r = 0; r < kRead; r++) window.rows[r] = image.source_row(segment.row * kStep - image.top + r);
    vectors(image.group, [&](int64_t channel, int width) {
      window.channel = channel;
      window.width = width;
      if (image.channels_last)
        strip_channels_last<kRead, kRows>(image, window, strip, pitch, vertical);
      else
        strip_channels_first<kRead, kRows>(image, window, strip, pitch, vertical);
      for (int i = 0; i < kRows; i++)
        for (int64_t t = 0; t < tiling.tiles; t++) {
          const float* from = strip + (i * pitch + t * kStep) * kLanes;
          float* out = to.data + i * kIn * to.plane + (s * tiling.tiles + t) * to.row + channel;
          Vec d[kRead], u[kIn];
#pragma GCC unroll 6
          for (int j = 0; j < kRead; j++) d[j] = load(from + j * kLanes);
          horizontal(d, u);
#pragma GCC unroll 6
          for (int j = 0; j < kIn; j++) store(out + j * to.plane, u[j]);
        }
    });
  }
}

}  // namespace
}  // namespace dlops
