// The weights of a correlation, packed for the register tile: [group][block of filters][tap][channel][filters of the
// block], filters padded with zeros to whole vectors.
#pragma once
#include "../cpu/transpose.h"
#include "direct_tile.h"

namespace dlops {
namespace {

// The filters of one group in blocks of up to kTileVectors vectors, alike to one vector.
struct FilterBlocks {
  int64_t filters, vectors, count;
  explicit FilterBlocks(int64_t group_filters)
      : filters(group_filters), vectors(ceil_div(filters, kLanes)), count(ceil_div(vectors, kTileVectors)) {}
  int64_t begin(int64_t block) const { return block * vectors / count; }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
  int64_t lanes() const { return vectors * kLanes; }
};

inline int64_t packed_floats_of(const Correlation& c, int64_t taps) {
  return c.groups * FilterBlocks(c.group_filters()).lanes() * taps * c.group_channels();
}

// Where tap `kernel_tap` of the kernel comes in the correlation; -1: it has another phase.
inline int64_t tap_of(const Correlation& c, int64_t kernel_tap) {
  int64_t tap = 0, of_axis[3];
  for (int i = 2; i >= 0; i--) {
    of_axis[i] = kernel_tap % c.axis[i].kernel;
    kernel_tap /= c.axis[i].kernel;
  }
  for (int i = 0; i < 3; i++) {
    const CorrelationAxis& a = c.axis[i];
    const int64_t from_first = of_axis[i] - a.first_tap, k = from_first / a.tap_step;
    if (from_first % a.tap_step || k < 0 || k >= a.taps) return -1;
    tap = tap * a.taps + k;
  }
  return tap;
}

// Weights are matrices [filters of a vector, columns], a column being (channel, tap): squares of them are transposed into
// vectors of filters.
template <class T>
struct WeightRows {
  const T* data;
  int64_t row;  // elements between filters
  int64_t columns;
  int64_t channel;  // of the first column
  const T* end;
};

template <class T>
void pack_rows(const WeightRows<T>& w, int filters, const int64_t* taps, int64_t kernel, int64_t channels,
               float* to, int64_t to_row) {
  for (int64_t first = 0; first < w.columns; first += kLanes) {
    const int count = static_cast<int>(lesser(kLanes, w.columns - first));
    Vec v[kLanes];
    for (int i = 0; i < kLanes; i++) {
      const T* from = w.data + i * w.row + first;
      v[i] = i >= filters ? zero() : from + kLanes <= w.end ? load(from) : load_part(from, count);
    }
    transpose(v);
    for (int j = 0; j < count; j++) {
      const int64_t tap = taps[(first + j) % kernel], channel = w.channel + (first + j) / kernel;
      if (tap >= 0) store(to + (tap * channels + channel) * to_row, v[j]);
    }
  }
}

template <class T>
void pack_weights(const Correlation& c, const T* w, float* packed) {
  const FilterBlocks blocks(c.group_filters());
  const int64_t kernel = c.kernel(), channels = c.group_channels(), filters = c.group_filters();
  const T* end = w + c.groups * filters * channels * kernel;
  cpu::Scratch memory(static_cast<size_t>(kernel) * sizeof(int64_t));
  int64_t* taps = reinterpret_cast<int64_t*>(memory.floats());
  for (int64_t k = 0; k < kernel; k++) taps[k] = tap_of(c, k);

  for (int64_t g = 0; g < c.groups; g++)
    for (int64_t b = 0; b < blocks.count; b++)
      for (int64_t v = blocks.begin(b); v < blocks.begin(b + 1); v++) {
        const int64_t row = blocks.size(b) * kLanes, f = v * kLanes;
        const int n = static_cast<int>(lesser(kLanes, filters - f));
        float* to = packed + (g * blocks.lanes() + blocks.begin(b) * kLanes) * c.depth() +
                    (v - blocks.begin(b)) * kLanes;
        if (!c.turned)
          pack_rows<T>(
              {w + (g * filters + f) * channels * kernel, channels * kernel, channels * kernel, 0, end}, n,
              taps, kernel, channels, to, row);
        for (int64_t o = 0; c.turned && o < channels; o++)
          pack_rows<T>({w + ((g * channels + o) * filters + f) * kernel, kernel, kernel, o, end}, n, taps,
                       kernel, channels, to, row);
      }
}

}  // namespace
}  // namespace dlops
