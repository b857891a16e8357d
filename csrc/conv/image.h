// The part of the source that a box of outputs needs, as a channels-last float32 image without edges: padding is applied,
// types and layout are converted here, so that the kernels see neither. A channels-last float32 source whose padding no
// output sees is read where it lies.
#pragma once
#include "../cpu/transpose.h"
#include "correlation.h"

namespace dlops {
namespace {

// Outputs q in [begin, begin + size) of some samples.
struct Box {
  int64_t sample, samples;
  int64_t begin[3], size[3];
  int64_t pixels() const { return samples * size[0] * size[1] * size[2]; }
};

struct ImageShape {
  bool in_place;
  int64_t stride[3], sample;  // floats between neighbours along an axis, between samples
  int64_t step[3];            // of the image, per output
  int64_t floats;             // of a copy

  // For boxes up to `largest`.
  ImageShape(const Correlation& c, const Box& largest, bool float32)
      : in_place(float32 && c.channels_last && without_padding(c)), sample(c.channels) {
    for (int i = 2; i >= 0; i--) {
      stride[i] = sample;
      step[i] = !in_place && gathers(c.axis[i]) ? 1 : c.axis[i].step;
      sample *= in_place ? c.axis[i].source : extent(c.axis[i], largest.size[i]);
    }
    floats = in_place || !c.taps() ? 0 : sample * largest.samples;
  }

  // A single tap needs no more than one position per output, whatever the step.
  static bool gathers(const CorrelationAxis& a) { return a.taps == 1; }
  static int64_t extent(const CorrelationAxis& a, int64_t count) {
    return gathers(a) ? count : (count - 1) * a.step + (a.taps - 1) * a.dilation + 1;
  }
  static bool without_padding(const Correlation& c) {
    for (const CorrelationAxis& a : c.axis)
      if (a.from < 0 || a.from + (a.count - 1) * a.step + (a.taps - 1) * a.dilation >= a.source) return false;
    return true;
  }
};

// One row of the source: element (pixel, channel) at data[pixel * pixel_stride + channel * channel_stride].
template <class T>
struct SourceRow {
  const T* data;
  int64_t pixel_stride, channel_stride;
  const T* end;  // of the whole tensor: a load may reach over the row, not over this
};

template <class T>
DLOPS_INLINE void convert(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; i++) to[i] = load1(from + i);
}

// `count` elements, `step` apart; the other lanes hold anything.
template <class T>
DLOPS_INLINE Vec load_row(const T* from, int64_t step, int count, const T* end) {
  if (step == 1 && from + kLanes <= end) return load(from);
  T lane[kLanes];
  for (int i = 0; i < count; i++) lane[i] = from[i * step];
  for (int i = count; i < kLanes; i++) lane[i] = lane[0];
  return load(lane);
}

// Channels first, many channels: squares of pixels x channels. The lanes of absent channels are not stored.
template <class T>
DLOPS_INLINE void transpose_pixels(const SourceRow<T>& row, int64_t channels, int64_t first, int64_t step,
                                   int64_t count, float* to) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int wide = static_cast<int>(lesser(kLanes, channels - c));
    for (int64_t j = 0; j < count; j += kLanes) {
      const int high = static_cast<int>(lesser(kLanes, count - j));
      const T* from = row.data + c * row.channel_stride + first + j * step;
      float* square = to + j * channels + c;
      Vec v[kLanes];
      const bool whole =
          wide == kLanes && step == 1 && from + (kLanes - 1) * row.channel_stride + kLanes <= row.end;
      if (whole) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) v[i] = load(from + i * row.channel_stride);
      } else {
        for (int i = 0; i < kLanes; i++)
          v[i] = load_row(from + (i < wide ? i : 0) * row.channel_stride, step, high, row.end);
      }
      transpose(v);
      if (whole && high == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) store(square + i * channels, v[i]);
      } else {
        for (int i = 0; i < high; i++)
          wide == kLanes ? store(square + i * channels, v[i]) : store_part(square + i * channels, v[i], wide);
      }
    }
  }
}

// Channels first, few channels.
template <class T>
DLOPS_INLINE void interleave_pixels(const SourceRow<T>& row, int64_t channels, int64_t first, int64_t step,
                                    int64_t count, float* to) {
  for (int64_t c = 0; c < channels; c++)
    for (int64_t j = 0; j < count; j += kLanes) {
      const int high = static_cast<int>(lesser(kLanes, count - j));
      float lane[kLanes];
      store(lane, load_row(row.data + c * row.channel_stride + first + j * step, step, high, row.end));
      for (int i = 0; i < high; i++) to[(j + i) * channels + c] = lane[i];
    }
}

// Source pixels first, first + step, ... to `count` pixels of the image.
template <class T>
void copy_pixels(const SourceRow<T>& row, int64_t channels, int64_t first, int64_t step, int64_t count,
                 float* to) {
  if (channels == 1 && step == 1) return convert(row.data + first, count, to);
  if (row.channel_stride != 1)
    return channels < kLanes / 2 ? interleave_pixels(row, channels, first, step, count, to)
                                 : transpose_pixels(row, channels, first, step, count, to);
  const T* from = row.data + first * channels;
  if (step == 1) return convert(from, count * channels, to);
  for (int64_t j = 0; j < count; j++) convert(from + j * step * channels, channels, to + j * channels);
}

// `count` pixels of the image's row from source position `begin` on; those beyond the source's edges by padding_mode.
template <class T>
void fill_row(const Correlation& c, const SourceRow<T>& row, int64_t begin, int64_t step, int64_t count,
              float* to) {
  const int64_t width = c.axis[2].source, channels = c.channels;
  const int64_t inside = begin < 0 ? lesser(count, ceil_div(-begin, step)) : 0;  // the first within the edges
  const int64_t outside =
      begin < width ? greater(inside, lesser(count, ceil_div(width - begin, step))) : inside;
  auto edge = [&](int64_t j) {
    const int64_t from = padded_source(c.padding_mode, begin + j * step, width);
    if (from < 0)
      memset(to + j * channels, 0, static_cast<size_t>(channels) * sizeof(float));
    else
      copy_pixels(row, channels, from, 1, 1, to + j * channels);
  };
  for (int64_t j = 0; j < inside; j++) edge(j);
  if (outside > inside)
    copy_pixels(row, channels, begin + inside * step, step, outside - inside, to + inside * channels);
  for (int64_t j = outside; j < count; j++) edge(j);
}

template <class T>
void fill_image(const Correlation& c, const ImageShape& shape, const Box& box, const T* source,
                float* image) {
  int64_t first[3], step[3], count[3];
  for (int i = 0; i < 3; i++) {
    const CorrelationAxis& a = c.axis[i];
    first[i] = a.from + box.begin[i] * a.step;
    step[i] = ImageShape::gathers(a) ? a.step : 1;
    count[i] = ImageShape::extent(a, box.size[i]);
  }
  const int64_t pixels = c.source_pixels();
  SourceRow<T> row{nullptr, c.channels_last ? c.channels : 1, c.channels_last ? 1 : pixels,
                   source + c.batch * pixels * c.channels};
  for (int64_t n = 0; n < box.samples; n++)
    for (int64_t d = 0; d < count[0]; d++)
      for (int64_t h = 0; h < count[1]; h++) {
        float* to = image + n * shape.sample + d * shape.stride[0] + h * shape.stride[1];
        const int64_t at_d = padded_source(c.padding_mode, first[0] + d * step[0], c.axis[0].source);
        const int64_t at_h = padded_source(c.padding_mode, first[1] + h * step[1], c.axis[1].source);
        if (at_d < 0 || at_h < 0) {
          memset(to, 0, static_cast<size_t>(count[2] * c.channels) * sizeof(float));
          continue;
        }
        const int64_t pixel = (at_d * c.axis[1].source + at_h) * c.axis[2].source;
        row.data = source + (box.sample + n) * pixels * c.channels + pixel * row.pixel_stride;
        fill_row(c, row, first[2], step[2], count[2], to);
      }
}

}  // namespace
}  // namespace dlops
