// The convolution as it is defined, one element of the result at a time: the oracle of the family and the first rung of
// its ladder. Any problem; nothing is fast.
#pragma once
#include "../cpu/parallel.h"
#include "epilogue.h"
#include "padding.h"

namespace dlops {
namespace {

// Where an element of a tensor [N, channels, pixels] lies.
struct Layout {
  int64_t channels, pixels;
  bool channels_last;
  int64_t at(int64_t n, int64_t c, int64_t pixel) const {
    return channels_last ? (n * pixels + pixel) * channels + c : (n * channels + c) * pixels + pixel;
  }
};
inline Layout layout_in(const ConvProblem& p) { return {p.channels, p.in_pixels(), p.channels_last}; }
inline Layout layout_out(const ConvProblem& p) { return {p.filters, p.out_pixels(), p.channels_last}; }

// f(pixel, position) for every pixel of a [depth, height, width] array.
template <class F>
DLOPS_INLINE void each_pixel(const int64_t (&size)[3], F f) {
  int64_t pixel = 0;
  for (int64_t d = 0; d < size[0]; d++)
    for (int64_t h = 0; h < size[1]; h++)
      for (int64_t w = 0; w < size[2]; w++, pixel++) {
        const int64_t position[3] = {d, h, w};
        f(pixel, position);
      }
}

// The input pixel that output position q meets at tap k; -1: a zero.
inline int64_t input_pixel(const ConvProblem& p, const int64_t (&q)[3], const int64_t (&k)[3]) {
  int64_t pixel = 0;
  for (int axis = 0; axis < 3; axis++) {
    const int64_t i = padded_source(
        p.padding_mode, q[axis] * p.stride[axis] - p.padding[axis] + k[axis] * p.dilation[axis], p.in[axis]);
    if (i < 0) return -1;
    pixel = pixel * p.in[axis] + i;
  }
  return pixel;
}

// The output pixel whose tap k meets input position i; -1: there is none.
inline int64_t output_pixel(const ConvProblem& p, const int64_t (&i)[3], const int64_t (&k)[3]) {
  int64_t pixel = 0;
  for (int axis = 0; axis < 3; axis++) {
    const int64_t scaled = i[axis] + p.padding[axis] - k[axis] * p.dilation[axis];
    if (scaled < 0 || scaled % p.stride[axis] || scaled / p.stride[axis] >= p.out[axis]) return -1;
    pixel = pixel * p.out[axis] + scaled / p.stride[axis];
  }
  return pixel;
}

template <class T>
DLOPS_INLINE void store_result(float sum, const ConvEpilogue& e, int64_t channel, int64_t at, void* result) {
  if (e.bias) sum += load1(static_cast<const T*>(e.bias) + channel);
  if (e.residual) sum += load1(static_cast<const T*>(e.residual) + at);
  store1(static_cast<T*>(result) + at, activate(set1(sum), e.activation)[0]);
}

// Each sum is one of small sums: over the taps of a channel here, over an image's row in the weight pass.
template <class T>
void naive_forward_of(const ConvForwardParams& p) {
  const T *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.w);
  const Layout in = layout_in(p), out = layout_out(p);
  parallel_for(p.threads, p.batch * p.filters, [&](int64_t plane) {
    const int64_t n = plane / p.filters, o = plane % p.filters, per = p.group_channels();
    const int64_t first = o / p.group_filters() * per;
    each_pixel(p.out, [&](int64_t q, const int64_t (&at_q)[3]) {
      float sum = 0;
      for (int64_t c = 0; c < per; c++) {
        float of_channel = 0;
        each_pixel(p.kernel, [&](int64_t k, const int64_t (&at_k)[3]) {
          const int64_t i = input_pixel(p, at_q, at_k);
          if (i >= 0)
            of_channel += load1(w + (o * per + c) * p.taps() + k) * load1(x + in.at(n, first + c, i));
        });
        sum += of_channel;
      }
      store_result<T>(sum, p.epilogue, o, out.at(n, o, q), p.y);
    });
  });
}

template <class T>
void naive_data_of(const ConvDataParams& p) {
  const T *dy = static_cast<const T*>(p.dy), *w = static_cast<const T*>(p.w);
  const Layout in = layout_in(p), out = layout_out(p);
  parallel_for(p.threads, p.batch * p.channels, [&](int64_t plane) {
    const int64_t n = plane / p.channels, channel = plane % p.channels, per = p.group_channels();
    const int64_t c = channel % per, first = channel / per * p.group_filters();
    each_pixel(p.in, [&](int64_t i, const int64_t (&at_i)[3]) {
      float sum = 0;
      for (int64_t o = first; o < first + p.group_filters(); o++) {
        float of_filter = 0;
        each_pixel(p.kernel, [&](int64_t k, const int64_t (&at_k)[3]) {
          const int64_t q = output_pixel(p, at_i, at_k);
          if (q >= 0) of_filter += load1(w + (o * per + c) * p.taps() + k) * load1(dy + out.at(n, o, q));
        });
        sum += of_filter;
      }
      store_result<T>(sum, p.epilogue, channel, in.at(n, channel, i), p.dx);
    });
  });
}

template <class T>
float naive_weight_element(const ConvWeightParams& p, int64_t o, int64_t channel, const int64_t (&at_k)[3]) {
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  const Layout in = layout_in(p), out = layout_out(p);
  const int64_t rows[3] = {p.out[0], p.out[1], 1};
  float sum = 0;
  for (int64_t n = 0; n < p.batch; n++)
    each_pixel(rows, [&](int64_t row, const int64_t (&at_row)[3]) {
      float of_row = 0;
      for (int64_t column = 0; column < p.out[2]; column++) {
        const int64_t i = input_pixel(p, {at_row[0], at_row[1], column}, at_k);
        if (i >= 0)
          of_row += load1(dy + out.at(n, o, row * p.out[2] + column)) * load1(x + in.at(n, channel, i));
      }
      sum += of_row;
    });
  return sum;
}

template <class T>
void naive_weight_of(const ConvWeightParams& p) {
  const int64_t per = p.group_channels();
  parallel_for(p.threads, p.filters * per, [&](int64_t plane) {
    const int64_t o = plane / per, channel = o / p.group_filters() * per + plane % per;
    each_pixel(p.kernel, [&](int64_t k, const int64_t (&at_k)[3]) {
      store1(static_cast<T*>(p.dw) + plane * p.taps() + k, naive_weight_element<T>(p, o, channel, at_k));
    });
  });
}

}  // namespace
}  // namespace dlops
