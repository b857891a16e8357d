// The image of a depthwise or small-group convolution, brought from a tensor to scratch with its padding: as one channel's
// plane with pixels in lanes (fill_plane), or as a block of kLanes channels with channels in lanes (fill_blocks).
#pragma once
#include "../cpu/transpose.h"
#include "padding.h"

namespace dlops {
namespace {

DLOPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DLOPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DLOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DLOPS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// One spatial axis. The elements in memory lie `step` positions apart, with zeros between them (the data pass of a strided
// convolution; 1 otherwise). Output q reads positions q stride - padding + k dilation.
struct Axis {
  int64_t in, step, out, taps, stride, dilation, padding;
  PaddingMode mode;

  // The element that a position shows, -1: a zero.
  int64_t source(int64_t i) const {
    if (step == 1) return padded_source(mode, i, in);
    return i >= 0 && i % step == 0 && i / step < in ? i / step : -1;
  }
};

// An image as the forward pass sees it.
inline void forward_axes(const ConvProblem& p, Axis (&axes)[3]) {
  for (int d = 0; d < 3; d++)
    axes[d] = {p.in[d], 1, p.out[d], p.kernel[d], p.stride[d], p.dilation[d], p.padding[d], p.padding_mode};
}

// The data pass is the forward pass of the mirrored kernel over dy, spread apart by the stride.
inline void data_axes(const ConvProblem& p, Axis (&axes)[3]) {
  for (int d = 0; d < 3; d++)
    axes[d] = {p.out[d],
               p.stride[d],
               p.in[d],
               p.kernel[d],
               1,
               p.dilation[d],
               p.dilation[d] * (p.kernel[d] - 1) - p.padding[d],
               PaddingMode::zeros};
}

// The positions [first, first + count) of an axis that some outputs read; the elements [begin, end) are among them.
struct Window {
  int64_t first, count, begin, end, step;
  int64_t at(int64_t element) const { return element * step - first; }  // its place in the window
};

inline Window window(const Axis& a, int64_t from, int64_t outs) {
  const int64_t first = from * a.stride - a.padding;
  const int64_t count = (outs - 1) * a.stride + (a.taps - 1) * a.dilation + 1, last = first + count - 1;
  const int64_t end = last < 0 ? 0 : smaller(a.in, last / a.step + 1);
  return {first, count, first <= 0 ? 0 : smaller(ceil_div(first, a.step), end), end, a.step};
}

// The outputs are cut into tiles, so that a tile's image stays in L2 and one sample gives work to many threads.
struct Tiling {
  int64_t size[3], count[3];
  int64_t tiles() const { return count[0] * count[1] * count[2]; }
};

inline Tiling cut(const Axis (&axes)[3], int64_t largest_image) {
  Tiling t;
  for (int d = 0; d < 3; d++) t.size[d] = axes[d].out;
  auto image = [&] {
    int64_t n = 1;
    for (int d = 0; d < 3; d++) n *= window(axes[d], 0, t.size[d]).count;
    return n;
  };
  for (int d = 0; d < 3; d++)
    while (t.size[d] > 1 && image() > largest_image) t.size[d] = (t.size[d] + 1) / 2;
  for (int d = 0; d < 3; d++) t.count[d] = ceil_div(axes[d].out, t.size[d]);
  return t;
}

constexpr int64_t kTileFloats = 98304;  // 384 KiB

struct Tile {
  int64_t begin[3], size[3];
  Window window[3];
};

inline Tile tile(const Axis (&axes)[3], const Tiling& t, int64_t i) {
  Tile r;
  const int64_t at[3] = {i / (t.count[1] * t.count[2]), i / t.count[2] % t.count[1], i % t.count[2]};
  for (int d = 0; d < 3; d++) {
    r.begin[d] = at[d] * t.size[d];
    r.size[d] = smaller(t.size[d], axes[d].out - r.begin[d]);
    r.window[d] = window(axes[d], r.begin[d], r.size[d]);
  }
  return r;
}

template <class T>
DLOPS_INLINE void to_floats(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n && n >= kLanes) return store(to + n - kLanes, load(from + n - kLanes));
  for (; i < n; i++) to[i] = load1(from + i);
}

// a0 a2 .. b0 b2 ..
DLOPS_INLINE Vec every_other(Vec a, Vec b) { return __builtin_shuffle(a, b, 2 * lane_index()); }

// Whole vectors: up to kLanes - 1 floats past the end are cleared too.
DLOPS_INLINE void clear(float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(to + i, zero());
}

// The lines of n elements, to L2. Reads nothing: the address may lie past a tensor's end.
template <class T>
DLOPS_INLINE void prefetch(const T* from, int64_t n) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(from),
                  last = first + static_cast<uintptr_t>(n) * sizeof(T);
  for (uintptr_t line = first; line < last; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
}

// ---- one channel, pixels in lanes ----

// Rows of a plane. With a stride, position i lies at (i % phases) phase_pitch + i / phases, so that the positions that a
// tap meets follow each other.
struct PlanePitch {
  int64_t phases, phase, row, slice;  // slice: from one depth to the next
  int64_t start;  // of the plane in its memory: what comes from the tensor shall be aligned
};

inline PlanePitch plane_pitch(const Tile& t, int64_t stride) {
  PlanePitch p;
  p.phases = stride;
  p.phase = round_up(ceil_div(t.window[2].count, stride), 16);
  p.row = p.phase * stride;
  p.slice = p.row * t.window[1].count;
  p.start = (16 - t.window[2].at(t.window[2].begin) % 16) % 16;
  return p;
}

// The elements at `from` to positions [begin, end) of a row in phases.
template <class T>
DLOPS_INLINE void split_row(const T* from, int64_t begin, int64_t end, const PlanePitch& pitch, float* to) {
  for (int64_t phase = 0; phase < pitch.phases; phase++) {
    int64_t i = begin + (phase + pitch.phases - begin % pitch.phases) % pitch.phases;
    float* out = to + phase * pitch.phase + i / pitch.phases;
    if (pitch.phases == 2)
      for (; i + 2 * kLanes <= end; i += 2 * kLanes, out += kLanes)
        store(out, every_other(load(from + i - begin), load(from + i - begin + kLanes)));
    for (; i < end; i += pitch.phases) *out++ = load1(from + i - begin);
  }
}

template <class T>
DLOPS_INLINE void fill_plane_row(const T* from, const Axis& axis, const Window& w, const PlanePitch& pitch,
                                 float* to) {
  auto put = [&](int64_t i) {
    const int64_t s = axis.source(w.first + i);
    to[i % pitch.phases * pitch.phase + i / pitch.phases] = s < 0 ? 0.f : load1(from + s);
  };
  const bool zeros = axis.mode == PaddingMode::zeros;
  if (pitch.phases == 1 && w.step == 1 && w.begin < w.end) {
    // What is cleared past the end is filled later: rows come in their order.
    if (zeros) clear(to, w.at(w.begin));
    to_floats(from + w.begin, w.end - w.begin, to + w.at(w.begin));
    if (zeros) return clear(to + w.at(w.end), w.count - w.at(w.end));
    for (int64_t i = 0; i < w.at(w.begin); i++) put(i);
    for (int64_t i = w.at(w.end); i < w.count; i++) put(i);
  } else if (w.step == 1 && w.begin < w.end) {
    for (int64_t i = 0; i < w.at(w.begin); i++) put(i);
    split_row(from + w.begin, w.at(w.begin), w.at(w.end), pitch, to);
    for (int64_t i = w.at(w.end); i < w.count; i++) put(i);
  } else if (w.begin < w.end) {
    clear(to, pitch.row);
    for (int64_t s = w.begin; s < w.end; s++) to[w.at(s)] = load1(from + s);
  } else {
    for (int64_t i = 0; i < w.count; i++) put(i);
  }
}

template <class T>
void fill_plane(const T* x, const Axis (&axes)[3], const Tile& t, const PlanePitch& pitch, float* plane) {
  for (int64_t z = 0; z < t.window[0].count; z++) {
    const int64_t d = axes[0].source(t.window[0].first + z);
    for (int64_t y = 0; y < t.window[1].count; y++) {
      const int64_t h = axes[1].source(t.window[1].first + y);
      float* to = plane + z * pitch.slice + y * pitch.row;
      if (d < 0 || h < 0)
        clear(to, pitch.row);
      else
        fill_plane_row(x + (d * axes[1].in + h) * axes[2].in, axes[2], t.window[2], pitch, to);
    }
  }
}

// ---- channels in lanes, blocks of kLanes ----

// Where the channels of some blocks lie in one sample: lane l of block b is of filter `filter + b kLanes + l`, which reads
// channel filter / multiplier. Lanes from `count` on repeat the last.
template <class T>
struct Channels {
  const T* x;  // the sample
  int64_t filter, count, multiplier;
  int64_t pixel_pitch, channel_pitch;  // in elements
  bool together;                       // the lanes follow each other in memory

  int64_t blocks() const { return ceil_div(count, kLanes); }
  int64_t offset(int64_t lane) const {
    return (filter + smaller(lane, count - 1)) / multiplier * channel_pitch;
  }
  Vec pixel(int64_t block, int64_t i) const {
    const T* p = x + i * pixel_pitch;
    const int64_t lanes = smaller(kLanes, count - block * kLanes);
    if (together && lanes == kLanes) return load(p + filter + block * kLanes);
    if (together) return load_part(p + filter + block * kLanes, static_cast<int>(lanes));
    float lane[kLanes];
    for (int l = 0; l < kLanes; l++) lane[l] = load1(p + offset(block * kLanes + l));
    return load(lane);
  }
};

template <class T>
Channels<T> channels(const T* sample, bool channels_last, int64_t all, int64_t pixels, int64_t filter,
                     int64_t count, int64_t multiplier) {
  return {sample,
          filter,
          count,
          multiplier,
          channels_last ? all : 1,
          channels_last ? 1 : pixels,
          channels_last && multiplier == 1};
}

// Pixels [begin, end) of memory in their order, kLanes at a time through a transpose: put(i, channels of pixel i).
template <class T, class Put>
DLOPS_INLINE void each_pixel_of_planes(const Channels<T>& c, int64_t block, int64_t begin, int64_t end,
                                       Put put) {
  const T* plane[kLanes];
  for (int l = 0; l < kLanes; l++) plane[l] = c.x + c.offset(block * kLanes + l);
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec v[kLanes];
    // The last vector reaches back, if it can.
    const int64_t at = i + kLanes <= end || end - begin < kLanes ? i : end - kLanes;
    const int64_t n = smaller(end - at, kLanes);
    if (n == kLanes)
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; l++) v[l] = load(plane[l] + at);
    else
      for (int l = 0; l < kLanes; l++) v[l] = load_part(plane[l] + at, static_cast<int>(n));
    transpose(v);
    if (at == i && n == kLanes)
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; k++) put(i + k, v[k]);
    else
      for (int64_t k = i - at; k < n; k++) put(at + k, v[k]);
  }
}

// The elements of memory of `rows` rows that follow each other, from planes. Where the window shows rows as a whole, they
// are one run of pixels.
template <class T>
DLOPS_INLINE void fill_from_planes(const Channels<T>& c, int64_t block, int64_t pixel, int64_t rows,
                                   int64_t width, const Window& x, int64_t line, float* row) {
  const int64_t next = x.step * kLanes, n = x.end - x.begin;
  if (n == width) {
    int64_t left = n;
    float* to = row;
    return each_pixel_of_planes(c, block, pixel, pixel + rows * width, [&](int64_t, Vec v) {
      store(to, v);
      to += next;
      if (--left == 0) left = n, to = row += line;
    });
  }
  for (int64_t r = 0; r < rows; r++, row += line) {
    const int64_t begin = pixel + r * width + x.begin;
    each_pixel_of_planes(c, block, begin, begin + n,
                         [&](int64_t i, Vec v) { store(row + (i - begin) * next, v); });
  }
}

// The same from pixels: all blocks of a pixel at once, as they follow each other in memory.
template <class T>
DLOPS_INLINE void fill_from_pixels(const Channels<T>& c, int64_t pixel, int64_t rows, int64_t width,
                                   const Window& x, int64_t line, int64_t block_floats, float* row) {
  const int64_t next = x.step * kLanes, whole = c.together ? c.count / kLanes : 0;
  for (int64_t r = 0; r < rows; r++, row += line)
    for (int64_t i = x.begin; i < x.end; i++) {
      const int64_t from = pixel + r * width + i;
      const T* p = c.x + from * c.pixel_pitch + c.filter;
      float* to = row + (i - x.begin) * next;
      for (int64_t b = 0; b < whole; b++, p += kLanes, to += block_floats) store(to, load(p));
      for (int64_t b = whole; b < c.blocks(); b++, to += block_floats) store(to, c.pixel(b, from));
    }
}

// Rows of memory and what lies beside them, to the blocks. `row`: the first of them in the first block.
template <class T>
struct BlockFiller {
  const Channels<T>& c;
  const Axis& axis;  // along a row
  const Window& x;
  int64_t row_floats, block_floats;

  void clear_row(float* row) const {
    for (int64_t b = 0; b < c.blocks(); b++) clear(row + b * block_floats, row_floats);
  }
  // `pixel`: the first of the row in memory
  void edges(int64_t pixel, float* row) const {
    if (x.step != 1) return clear_row(row);
    const bool none = x.begin >= x.end;
    const int64_t left = none ? x.count : x.at(x.begin), right = none ? x.count : x.at(x.end);
    for (int64_t b = 0; b < c.blocks(); b++) {
      auto put = [&](int64_t i) {
        const int64_t s = axis.source(x.first + i);
        store(row + b * block_floats + i * kLanes, s < 0 ? zero() : c.pixel(b, pixel + s));
      };
      for (int64_t i = 0; i < left; i++) put(i);
      for (int64_t i = right; i < x.count; i++) put(i);
    }
  }
  void rows(int64_t pixel, int64_t n, int64_t apart, float* row) const {
    if (x.begin >= x.end) return;
    row += x.at(x.begin) * kLanes;
    if (c.pixel_pitch != 1)
      return fill_from_pixels(c, pixel, n, axis.in, x, apart * row_floats, block_floats, row);
    for (int64_t b = 0; b < c.blocks(); b++)
      fill_from_planes(c, b, pixel, n, axis.in, x, apart * row_floats, row + b * block_floats);
  }
};

// Blocks brought to scratch together: channels-last pixels are read in runs of up to 512 bytes, or every channel block would
// read one line out of many (and be far slower). Fewer, if tiles would be so small that most of an image is read twice.
inline int64_t blocks_together(const Axis (&axes)[3], int64_t blocks, bool channels_last) {
  if (!channels_last) return 1;
  for (int64_t most = 128 / kLanes; most > 1; most /= 2) {
    const int64_t together = ceil_div(blocks, ceil_div(blocks, most));
    const Tile t = tile(axes, cut(axes, kTileFloats / (kLanes * together)), 0);
    if (2 * t.window[1].count <= 3 * t.size[1] * axes[1].stride || t.size[1] == axes[1].out) return together;
  }
  return 1;
}

// Floats of one block of a tile: [depth, height, width of the window, kLanes].
inline int64_t block_floats(const Tile& t) {
  return t.window[0].count * t.window[1].count * t.window[2].count * kLanes;
}

// blocks: one after another, `distance` floats apart.
template <class T>
void fill_blocks(const Channels<T>& c, const Axis (&axes)[3], const Tile& t, int64_t distance,
                 float* blocks) {
  const Window &y = t.window[1], &x = t.window[2];
  const int64_t line = x.count * kLanes;
  const BlockFiller<T> fill = {c, axes[2], x, line, distance};
  for (int64_t z = 0; z < t.window[0].count; z++, blocks += y.count * line) {
    const int64_t d = axes[0].source(t.window[0].first + z);
    for (int64_t i = 0; i < y.count; i++) {
      const int64_t h = axes[1].source(y.first + i);
      float* row = blocks + i * line;
      if (d < 0 || h < 0) {
        fill.clear_row(row);
        continue;
      }
      const int64_t pixel = (d * axes[1].in + h) * axes[2].in;
      fill.edges(pixel, row);
      if (y.first + i < 0 || y.first + i >= y.end * y.step)
        fill.rows(pixel, 1, 1, row);  // a row that padding repeats
    }
    if (d >= 0 && y.begin < y.end)
      fill.rows((d * axes[1].in + y.begin) * axes[2].in, y.end - y.begin, y.step,
                blocks + y.at(y.begin) * line);
  }
}

}  // namespace
}  // namespace dlops
