// Where things lie, for the family's CUDA kernels: which pixel an index is, which one a tap sees, at which offset it is.
#pragma once
#include "../catalogue.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "params.h"

namespace dlops::conv {

#define DLOPS_CONV_CUDA_KERNEL(op, variant, tile, name, dynamic_shared) \
  DLOPS_CUDA_KERNEL(op, "conv", variant, "sm_75 sm_80 sm_90a", "f32 f16 bf16", tile, name, dynamic_shared)

constexpr int64_t tiles(int64_t n, int64_t size) { return (n + size - 1) / size; }  // also in kernels
inline dim3 task_grid(int64_t tasks) { return dim3(block_count(tasks)); }

// May pixels of one sample and products of one sum be counted in 32 bits? Offsets in memory are 64 bits wide always.
inline bool counts_fit_int(const ConvProblem& p) {
  constexpr int64_t most = 1 << 28;
  for (int i = 0; i < 3; i++)
    if (p.in[i] > most || p.out[i] > most || p.stride[i] > most || p.padding[i] > most ||
        p.dilation[i] * p.kernel[i] > most || (p.out[i] - 1) * p.stride[i] > most)
      return false;
  return p.in_pixels() < most && p.out_pixels() < most && p.taps() * p.channels < most &&
         p.taps() * p.filters < most;
}
inline const char* refuses_counts(const ConvProblem& p) {
  return counts_fit_int(p) ? nullptr : "is for samples and filters of fewer than 2^28 elements per channel";
}

// Kernel and padding along x as one number to switch on, 10 K + padding; -1 for a padding that would make it another's.
inline int64_t window_of(const ConvProblem& p) {
  return p.padding[2] >= 0 && p.padding[2] < 10 ? p.kernel[2] * 10 + p.padding[2] : -1;
}

// ---- offsets: x and y are [N, C, pixels] or [N, pixels, C] ----

struct Strides { int64_t sample, channel, pixel; };  // in elements
constexpr Strides strides_of(bool channels_last, int64_t channels, int64_t pixels) {
  return {channels * pixels, channels_last ? 1 : pixels, channels_last ? channels : 1};
}

// Element `at` of the array in memory, however it lies.
struct Element {
  int64_t sample, channel;
  int pixel;
};
DLOPS_DEVICE Element element_of(int64_t at, bool channels_last, int64_t channels, int64_t pixels) {
  const int64_t inner = channels_last ? channels : pixels, row = at / inner,
                outer = channels_last ? pixels : channels;
  const int64_t i = at % inner, o = row % outer;
  return {row / outer, channels_last ? i : o, static_cast<int>(channels_last ? o : i)};
}

// ---- pixels ----

struct Pixel { int z, y, x; };
DLOPS_DEVICE Pixel pixel_of(int i, const int64_t (&size)[3]) {
  const int width = static_cast<int>(size[2]), height = static_cast<int>(size[1]), row = i / width;
  return {row / height, row % height, i % width};
}
DLOPS_DEVICE int pixel_at(const Pixel& p, const int64_t (&size)[3]) {
  return (p.z * static_cast<int>(size[1]) + p.y) * static_cast<int>(size[2]) + p.x;
}

// Which element of `size` an index outside of it stands for; -1: none, it reads as 0. Padding is less than `size` (reflect)
// or at most that (circular), as torch demands, so that one turn suffices.
DLOPS_DEVICE int padded(int i, int size, PaddingMode mode) {
  if (static_cast<unsigned>(i) < static_cast<unsigned>(size)) return i;
  switch (mode) {
    case PaddingMode::zeros: return -1;
    case PaddingMode::reflect: return i < 0 ? -i : 2 * (size - 1) - i;
    case PaddingMode::replicate: return i < 0 ? 0 : size - 1;
    case PaddingMode::circular: return i < 0 ? i + size : i - size;
  }
  return -1;
}

// Along one axis: the element of x that tap k of output q sees, -1 if none.
DLOPS_DEVICE int seen_by(const ConvProblem& p, int axis, int q, int k) {
  const int i = q * static_cast<int>(p.stride[axis]) - static_cast<int>(p.padding[axis]) +
                k * static_cast<int>(p.dilation[axis]);
  return padded(i, static_cast<int>(p.in[axis]), p.padding_mode);
}
// The output whose tap k sees element i of x, -1 if none: the way back, for padding mode zeros.
DLOPS_DEVICE int sees(const ConvProblem& p, int axis, int i, int k) {
  const int from = i + static_cast<int>(p.padding[axis]) - k * static_cast<int>(p.dilation[axis]);
  const int stride = static_cast<int>(p.stride[axis]), q = stride == 1 ? from : from / stride;
  return from >= 0 && q * stride == from && q < static_cast<int>(p.out[axis]) ? q : -1;
}

// The same in three dimensions, for tap (k.z, k.y, k.x): the flat pixel, -1 if none.
DLOPS_DEVICE int pixel_seen_by(const ConvProblem& p, const Pixel& q, const Pixel& k) {
  const Pixel i = {seen_by(p, 0, q.z, k.z), seen_by(p, 1, q.y, k.y), seen_by(p, 2, q.x, k.x)};
  return (i.z | i.y | i.x) < 0 ? -1 : pixel_at(i, p.in);
}
DLOPS_DEVICE int pixel_that_sees(const ConvProblem& p, const Pixel& i, const Pixel& k) {
  const Pixel q = {sees(p, 0, i.z, k.z), sees(p, 1, i.y, k.y), sees(p, 2, i.x, k.x)};
  return (q.z | q.y | q.x) < 0 ? -1 : pixel_at(q, p.out);
}

}  // namespace dlops::conv
