// The direct weight pass: dw[c, k][o] = sum over output pixels of x[pixel + k, c] dy[pixel, o], as register tiles of rows
// (channels; side by side in the image, the taps of a row too) and vectors of filters, summed over the pixels of a box.
//
// Boxes are dealt to a fixed number of sums, and filters to a fixed number of splits. The sums are joined in their order.
#pragma once
#include "direct.h"

namespace dlops {
namespace {

// The products of an output as runs of consecutive floats of the image. Taps of a row that lie side by side are one run.
struct Run { int64_t offset, length; };
struct RunList {
  int64_t taps[3], length, count;

  RunList(const Correlation& c, const ImageShape& image)
      : taps{c.axis[0].taps, c.axis[1].taps, c.axis[2].taps}, length(c.group_channels()) {
    if (c.groups == 1 && c.axis[2].dilation == 1 && image.stride[2] == c.channels) {
      length *= taps[2];
      taps[2] = 1;
    }
    count = taps[0] * taps[1] * taps[2];
  }
  void fill(const Correlation& c, const ImageShape& image, Run* run) const {
    for (int64_t d = 0; d < taps[0]; d++)
      for (int64_t h = 0; h < taps[1]; h++)
        for (int64_t w = 0; w < taps[2]; w++)
          *run++ = {d * c.axis[0].dilation * image.stride[0] + h * c.axis[1].dilation * image.stride[1] +
                        w * c.axis[2].dilation * image.stride[2],
                    length};
  }
};

constexpr int64_t kWeightPixels = 96;        // of a box: dy of a block of filters stays in L1
constexpr int64_t kMostSumFloats = 1 << 22;  // of all sums

struct WeightTiles {
  const float *image, *dy;
  const int64_t *image_at, *dy_at;  // of each pixel
  int64_t pixels;
  bool add;  // to the sums of earlier boxes
};

// sums[MR, NR kLanes] (+)= sum over pixels of image[pixel, row] dy[pixel, filter]
template <int MR, int NR>
__attribute__((noinline)) void weight_tile(const WeightTiles& t, const float* image, const float* dy,
                                           float* sums) {
  Vec sum[MR][NR];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) sum[i][j] = zero();
  for (int64_t p = 0; p < t.pixels; p++) {
    const float *a = image + t.image_at[p], *b = dy + t.dy_at[p];
    Vec row[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) row[j] = load(b + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
      const Vec x = set1(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) sum[i][j] = fma(x, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      float* to = sums + (i * NR + j) * kLanes;
      store(to, t.add ? load(to) + sum[i][j] : sum[i][j]);
    }
}

template <int MR, int NR>
DLOPS_INLINE void weight_tile_of(int64_t rows, const WeightTiles& t, const float* image, const float* dy,
                                 float* sums) {
  if (rows == MR) return weight_tile<MR, NR>(t, image, dy, sums);
  if constexpr (MR > 1) weight_tile_of<MR - 1, NR>(rows, t, image, dy, sums);
}

// The rows of a run, in tiles of equal height.
template <int NR>
void weight_run(const WeightTiles& t, const Run& run, int64_t channel, const float* dy, float* sums) {
  constexpr int kRows = tile_rows(NR);
  const float* image = t.image + run.offset + channel;
  for (int64_t tiles = ceil_div(run.length, kRows), i = 0; tiles > 0; tiles--) {
    const int64_t rows = ceil_div(run.length - i, tiles);
    weight_tile_of<kRows, NR>(rows, t, image + i, dy, sums + i * NR * kLanes);
    i += rows;
  }
}

inline void weight_run(int64_t vectors, const WeightTiles& t, const Run& run, int64_t channel,
                       const float* dy, float* sums) {
  if (vectors == 1) return weight_run<1>(t, run, channel, dy, sums);
  if (vectors == 2) return weight_run<2>(t, run, channel, dy, sums);
  if (vectors == 3) return weight_run<3>(t, run, channel, dy, sums);
  if constexpr (kTileVectors == 4) weight_run<4>(t, run, channel, dy, sums);
}

// dy as the source of a correlation: each output once.
inline Correlation result_as_source(const Correlation& c) {
  Correlation d = c;
  d.channels = c.filters;
  d.groups = 1;
  for (CorrelationAxis& a : d.axis) a = {a.result, a.result, a.count, 0, 1, 1, 0, 1, 1, 0, 1, 1};
  return d;
}

// How the work is cut.
struct WeightPlan {
  Correlation c, dy;
  Boxes boxes;
  ImageShape image, dy_image;
  RunList runs;
  FilterBlocks blocks;
  int64_t sums, splits, floats;  // floats: of one sum, [group][block of filters][tap][channel][filters]

  WeightPlan(const Correlation& of, bool float32)
      : c(of),
        dy(result_as_source(of)),
        boxes(c, kWeightPixels),
        image(c, boxes.largest, float32),
        // vectors of filters may reach over a pixel's end, so not over the tensor's
        dy_image(dy, boxes.largest, float32 && c.group_filters() % kLanes == 0),
        runs(c, image),
        blocks(c.group_filters()),
        floats(packed_floats_of(c, c.taps())) {
    const int64_t all_blocks = blocks.count * c.groups;
    sums = lesser(lesser(boxes.count(), kWantedTasks), greater(1, kMostSumFloats / floats));
    splits = lesser(all_blocks, ceil_div(kWantedTasks, sums));
  }
};

template <class T>
void weight_box(const WeightPlan& w, const Run* runs, const Box& box, bool add, int64_t begin, int64_t end,
                const T* x, const T* dy, float* image, float* dy_image, float* sums) {
  const Correlation& c = w.c;
  const PixelTable pixels(c, w.image, box);
  int64_t dy_rows[kMostPixels];
  WeightTiles t{image,        dy_image, pixels.image, w.dy_image.in_place ? pixels.result : dy_rows,
                pixels.count, add};
  if (!w.image.in_place) fill_image(c, w.image, box, x, image);
  if (!w.dy_image.in_place) {
    fill_image(w.dy, w.dy_image, box, dy, dy_image);
    const PixelTable rows(w.dy, w.dy_image, box);
    for (int64_t i = 0; i < rows.count; i++) dy_rows[i] = rows.image[i];
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (w.image.in_place) {
      t.image = x + box.sample * w.image.sample;
      for (int i = 0; i < 3; i++)
        t.image += (c.axis[i].from + box.begin[i] * c.axis[i].step) * w.image.stride[i];
    }
    if (w.dy_image.in_place) t.dy = dy;
  }
  for (int64_t b = begin; b < end; b++) {
    const int64_t g = b / w.blocks.count, lane = w.blocks.begin(b % w.blocks.count) * kLanes;
    const int64_t vectors = w.blocks.size(b % w.blocks.count);
    float* to = sums + (g * w.blocks.lanes() + lane) * c.depth();
    for (int64_t r = 0; r < w.runs.count; to += runs[r++].length * vectors * kLanes)
      weight_run(vectors, t, runs[r], g * c.group_channels(), t.dy + g * c.group_filters() + lane, to);
  }
}

// One vector of filters from [tap][channel] rows of the joined sums to dw[filter][channel][tap].
template <class T>
void write_weights(const Correlation& c, const float* sums, int64_t row, int filters, T* dw) {
  const int64_t taps = c.taps(), channels = c.group_channels(), columns = taps * channels;
  for (int64_t first = 0; first < columns; first += kLanes) {
    const int count = static_cast<int>(lesser(kLanes, columns - first));
    Vec v[kLanes];
    for (int j = 0; j < kLanes; j++) {
      const int64_t column = first + (j < count ? j : 0);
      v[j] = load(sums + (column % taps * channels + column / taps) * row);
    }
    transpose(v);
    for (int i = 0; i < filters; i++)
      count == kLanes ? store(dw + i * columns + first, v[i])
                      : store_part(dw + i * columns + first, v[i], count);
  }
}

// All sums, joined in order, of one block of filters.
template <class T>
void join_sums(const WeightPlan& w, int64_t b, float* sums, T* dw) {
  const Correlation& c = w.c;
  const int64_t g = b / w.blocks.count, first = w.blocks.begin(b % w.blocks.count),
                n = w.blocks.size(b % w.blocks.count);
  float* block = sums + (g * w.blocks.lanes() + first * kLanes) * c.depth();
  for (int64_t i = 0; i < n * kLanes * c.depth(); i += kLanes) {
    Vec v = load(block + i);
    for (int64_t s = 1; s < w.sums; s++) v = v + load(block + s * w.floats + i);
    store(block + i, v);
  }
  for (int64_t j = 0; j < n; j++) {
    const int64_t filter = (first + j) * kLanes;
    write_weights(c, block + j * kLanes, n * kLanes,
                  static_cast<int>(lesser(kLanes, c.group_filters() - filter)),
                  dw + (g * c.group_filters() + filter) * c.depth());
  }
}

template <class T>
void direct_weight_of(const ConvWeightParams& p) {
  const WeightPlan w(forward_correlation(p), sizeof(T) == sizeof(float));
  const int64_t boxes = w.boxes.count(), all_blocks = w.blocks.count * w.c.groups;
  cpu::Scratch sums(static_cast<size_t>(w.sums * w.floats) * sizeof(float));
  cpu::Scratch run_memory(static_cast<size_t>(w.runs.count + 1) * sizeof(Run));
  Run* runs = reinterpret_cast<Run*>(run_memory.floats());
  w.runs.fill(w.c, w.image, runs);

  parallel_for(p.threads, w.sums * w.splits, [&](int64_t task) {
    const int64_t sum = task / w.splits, split = task % w.splits;
    const int64_t begin = sum * boxes / w.sums, end = (sum + 1) * boxes / w.sums;
    cpu::Scratch image(static_cast<size_t>(w.image.floats) * sizeof(float));
    cpu::Scratch dy(static_cast<size_t>(w.dy_image.floats + kTileVectors * kLanes) * sizeof(float));
    for (int64_t i = begin; i < end; i++)
      weight_box(w, runs, w.boxes.box(w.c, i), i > begin, split * all_blocks / w.splits,
                 (split + 1) * all_blocks / w.splits, static_cast<const T*>(p.x), static_cast<const T*>(p.dy),
                 image.floats(), dy.floats(), sums.floats() + sum * w.floats);
  });
  parallel_for(p.threads, all_blocks,
               [&](int64_t b) { join_sums(w, b, sums.floats(), static_cast<T*>(p.dw)); });
}

}  // namespace
}  // namespace dlops
