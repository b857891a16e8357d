// The direct kernels: a correlation as register tiles over an image without edges.
//
// The work is cut into boxes of a few hundred outputs, and where these are few, into sets of filter blocks as well. A box
// brings its image to a cache (image.h), then goes through its filters block by block, and through each block's products in
// parts whose weights stay in L2. Parts are summed apart, then joined: a long sum keeps small errors.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "direct_weights.h"
#include "image.h"

namespace dlops {
namespace {

constexpr int64_t kMostPixels = 448, kFewestPixels = 192;  // of a box
constexpr int64_t kImageFloats = 49152;
constexpr int64_t kPartProducts = 512;  // of a sum
constexpr int64_t kWantedTasks = 16;

inline int64_t box_pixels(const Correlation& c) {
  return lesser(kMostPixels, greater(kFewestPixels, kImageFloats / c.channels));
}

// Boxes of at most `room` outputs, so that their image stays in L2: parts of a row, rows, planes or whole samples.
struct Boxes {
  Box largest{};
  int64_t counts[4];  // along samples and the axes

  Boxes(const Correlation& c, int64_t room) {
    for (int i = 2; i >= 0; i--) room = split(c.axis[i].count, room, counts[i + 1], largest.size[i]);
    split(c.batch, room, counts[0], largest.samples);
  }
  int64_t count() const { return counts[0] * counts[1] * counts[2] * counts[3]; }
  Box box(const Correlation& c, int64_t index) const {
    Box b;
    for (int i = 2; i >= 0; i--) {
      b.begin[i] = index % counts[i + 1] * largest.size[i];
      b.size[i] = lesser(largest.size[i], c.axis[i].count - b.begin[i]);
      index /= counts[i + 1];
    }
    b.sample = index * largest.samples;
    b.samples = lesser(largest.samples, c.batch - b.sample);
    return b;
  }

 private:
  // Returns the room left for the next axis: 1 unless this one fits as a whole.
  static int64_t split(int64_t length, int64_t room, int64_t& parts, int64_t& size) {
    size = ceil_div(length, ceil_div(length, room));
    parts = ceil_div(length, size);
    return parts == 1 ? room / size : 1;
  }
};

// Where the products of an output find their elements, from the first one's place in the image on: [taps][channels of a group].
inline void fill_offsets(const Correlation& c, const ImageShape& image, int64_t* offset) {
  for (int64_t d = 0; d < c.axis[0].taps; d++)
    for (int64_t h = 0; h < c.axis[1].taps; h++)
      for (int64_t w = 0; w < c.axis[2].taps; w++) {
        const int64_t tap = d * c.axis[0].dilation * image.stride[0] +
                            h * c.axis[1].dilation * image.stride[1] +
                            w * c.axis[2].dilation * image.stride[2];
        for (int64_t i = 0; i < c.group_channels(); i++) *offset++ = tap + i;
      }
}

template <class T>
struct CorrelationTensors {
  const T* source;
  const float *packed, *bias;  // bias: [groups][filters of a group, padded to whole vectors]
  const T* residual;
  T* result;
  Activation activation;
};

// The pixels of a box: where they begin in the image, and where in the result (of filter 0).
struct PixelTable {
  int64_t count = 0, image[kMostPixels], result[kMostPixels];

  PixelTable(const Correlation& c, const ImageShape& shape, const Box& box) {
    const CorrelationAxis(&a)[3] = c.axis;
    const int64_t pixels = c.result_pixels(), pixel_stride = c.channels_last ? c.filters : 1;
    const int64_t image_step = shape.step[2] * shape.stride[2], result_step = a[2].to_step * pixel_stride;
    auto at = [&](int axis, int64_t q) { return a[axis].to + (box.begin[axis] + q) * a[axis].to_step; };
    for (int64_t n = 0; n < box.samples; n++)
      for (int64_t d = 0; d < box.size[0]; d++)
        for (int64_t h = 0; h < box.size[1]; h++) {
          int64_t from =
              n * shape.sample + d * shape.step[0] * shape.stride[0] + h * shape.step[1] * shape.stride[1];
          const int64_t pixel = (at(0, d) * a[1].result + at(1, h)) * a[2].result + at(2, 0);
          int64_t to = (box.sample + n) * pixels * c.filters + pixel * pixel_stride;
          for (int64_t w = 0; w < box.size[2]; w++, count++, from += image_step, to += result_step) {
            image[count] = from;
            result[count] = to;
          }
        }
  }
};

// A block of filters of a group.
struct Block {
  int64_t vectors, first;  // first filter, of all groups
  int count;               // filters that exist
};

// residual, activation, rounding: from rows of floats for each pixel to the result. (Bias is in.)
template <class T>
void finish_channels_last(const CorrelationTensors<T>& t, const PixelTable& pixels, const Block& block,
                          const float* sums) {
  for (int64_t i = 0; i < pixels.count; i++)
    for (int64_t j = 0; j < block.vectors; j++, sums += kLanes) {
      const int n = static_cast<int>(lesser(kLanes, block.count - j * kLanes));
      const int64_t at = pixels.result[i] + block.first + j * kLanes;
      Vec v = load(sums);
      if (t.residual) v = v + (n == kLanes ? load(t.residual + at) : load_part(t.residual + at, n));
      v = activate(v, t.activation);
      n == kLanes ? store(t.result + at, v) : store_part(t.result + at, v, n);
    }
}

// A row of one filter: `count` pixels.
template <class T>
DLOPS_INLINE void finish_row(const CorrelationTensors<T>& t, Vec v, int64_t plane, const int64_t* at,
                             int count) {
  if (count == kLanes && at[kLanes - 1] == at[0] + kLanes - 1) {
    if (t.residual) v = v + load(t.residual + plane + at[0]);
    return store(t.result + plane + at[0], activate(v, t.activation));
  }
  T lane[kLanes];
  if (t.residual) {
    for (int i = 0; i < kLanes; i++) lane[i] = t.residual[plane + at[i < count ? i : 0]];
    v = v + load(lane);
  }
  store(lane, activate(v, t.activation));
  for (int i = 0; i < count; i++) t.result[plane + at[i]] = lane[i];
}

template <class T>
void finish_channels_first(const CorrelationTensors<T>& t, const PixelTable& pixels, const Block& block,
                           const float* sums, int64_t plane) {
  const int64_t row = block.vectors * kLanes;
  for (int64_t i = 0; i < pixels.count; i += kLanes) {
    const int high = static_cast<int>(lesser(kLanes, pixels.count - i));
    for (int64_t f = 0; f < block.count; f += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; k++) v[k] = load(sums + (i + (k < high ? k : 0)) * row + f);
      transpose(v);
      for (int k = 0; k < lesser(kLanes, block.count - f); k++)
        finish_row(t, v[k], (block.first + f + k) * plane, pixels.result + i, high);
    }
  }
}

// One box, and the blocks of filters [begin, end) of all groups.
template <class T>
void correlate_box(const Correlation& c, const ImageShape& shape, const Box& box, int64_t begin, int64_t end,
                   const CorrelationTensors<T>& t) {
  constexpr bool float32 = sizeof(T) == sizeof(float);
  const PixelTable pixels(c, shape, box);
  const int64_t depth = c.depth(), parts = greater(1, ceil_div(depth, kPartProducts));
  const FilterBlocks blocks(c.group_filters());
  cpu::Scratch offset_memory(static_cast<size_t>(depth) * sizeof(int64_t));
  cpu::Scratch image_memory(static_cast<size_t>(shape.floats) * sizeof(float));
  cpu::Scratch sum_memory(static_cast<size_t>(pixels.count * kTileVectors * kLanes) * sizeof(float));
  int64_t* offset = reinterpret_cast<int64_t*>(offset_memory.floats());
  fill_offsets(c, shape, offset);

  const float* image = image_memory.floats();
  if (depth && !shape.in_place) fill_image(c, shape, box, t.source, image_memory.floats());
  if constexpr (float32)
    if (shape.in_place) {
      image = t.source + box.sample * shape.sample;
      for (int i = 0; i < 3; i++) image += (c.axis[i].from + box.begin[i] * c.axis[i].step) * shape.stride[i];
    }

  for (int64_t b = begin; b < end; b++) {
    const int64_t g = b / blocks.count, in_group = b % blocks.count, lane = blocks.begin(in_group) * kLanes;
    const Block block{blocks.size(in_group), g * c.group_filters() + lane,
                      static_cast<int>(lesser(blocks.size(in_group) * kLanes, c.group_filters() - lane))};
    const int64_t row = block.vectors * kLanes;
    const bool whole = block.count == row;
    const bool direct = float32 && c.channels_last && whole &&
                        (t.activation == Activation::none || t.activation == Activation::relu);
    int64_t rows[kMostPixels];
    for (int64_t i = 0; i < pixels.count; i++) rows[i] = i * row;

    DirectTiles tiles{};
    tiles.image = image + g * c.group_channels();
    const float* weights = t.packed + (g * blocks.lanes() + lane) * depth;
    tiles.out = sum_memory.floats();
    if constexpr (float32)
      if (direct) tiles.out = t.result + block.first;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t first = part * depth / parts;
      tiles.offset = offset + first;
      tiles.products = (part + 1) * depth / parts - first;
      tiles.weights = weights + first * row;
      tiles.add = part > 0;
      if (part == parts - 1) {
        tiles.bias = t.bias + g * blocks.lanes() + lane;
        tiles.relu = direct && t.activation == Activation::relu;
        if constexpr (float32)
          if (direct && t.residual) tiles.residual = t.residual + block.first;
      }
      direct_tiles(block.vectors, tiles, pixels.count, pixels.image, direct ? pixels.result : rows);
    }
    if (direct) continue;
    if (c.channels_last)
      finish_channels_last(t, pixels, block, sum_memory.floats());
    else
      finish_channels_first(t, pixels, block, sum_memory.floats(), c.result_pixels());
  }
}

// All phases: `correlation(phase)`, of which the first has the most outputs, each with `packed` floats of weights.
template <class T, class F>
void correlate(int threads, int64_t phases, F correlation, int64_t packed, const ConvEpilogue& epilogue,
               CorrelationTensors<T> t) {
  const Correlation first = correlation(0);
  const FilterBlocks blocks(first.group_filters());
  const int64_t boxes = Boxes(first, box_pixels(first)).count(), all_blocks = blocks.count * first.groups;
  const int64_t splits = lesser(all_blocks, ceil_div(kWantedTasks, boxes * phases));

  cpu::Scratch bias(static_cast<size_t>(first.groups * blocks.lanes()) * sizeof(float));
  for (int64_t g = 0; g < first.groups; g++)
    for (int64_t f = 0; f < blocks.lanes(); f++)
      bias.floats()[g * blocks.lanes() + f] =
          epilogue.bias && f < blocks.filters
              ? load1(static_cast<const T*>(epilogue.bias) + g * blocks.filters + f)
              : 0.f;
  t.bias = bias.floats();
  t.residual = static_cast<const T*>(epilogue.residual);
  t.activation = epilogue.activation;

  parallel_for(threads, phases * boxes * splits, [&](int64_t task) {
    const int64_t split = task % splits, box = task / splits % boxes, phase = task / splits / boxes;
    const Correlation c = correlation(phase);
    if (c.empty()) return;
    const Boxes of_phase(c, box_pixels(c));
    if (box >= of_phase.count()) return;
    CorrelationTensors<T> tensors = t;
    tensors.packed += phase * packed;
    correlate_box(c, ImageShape(c, of_phase.largest, sizeof(T) == sizeof(float)), of_phase.box(c, box),
                  split * all_blocks / splits, (split + 1) * all_blocks / splits, tensors);
  });
}

}  // namespace
}  // namespace dlops
