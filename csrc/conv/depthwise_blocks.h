// The forward and the data pass with channels in lanes: images to blocks of kLanes channels, rows of sums, results.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "depthwise_finish.h"
#include "depthwise_image.h"

namespace dlops {
namespace {

// The problem of the forward or the data pass: `filters` channels of the result; filter f sees channel f / multiplier of the
// image, and in a convolution of groups its neighbours.
struct Depthwise {
  int64_t batch, filters, multiplier;
  Axis axes[3];
  bool channels_last;
  int threads;
  const void* image;
  const float* weights;  // of one block of kLanes filters after another
  int64_t block_weights;
  ConvEpilogue epilogue;
  void* result;

  int64_t in_pixels() const { return axes[0].in * axes[1].in * axes[2].in; }
  int64_t out_pixels() const { return axes[0].out * axes[1].out * axes[2].out; }
  int64_t taps() const { return axes[0].taps * axes[1].taps * axes[2].taps; }
};

// Makes one row of the tile's outputs of one block: sums [width of the tile, kLanes].
using ConvolveRow = void (*)(const Axis (&axes)[3], const Tile&, const float* block, const float* weights,
                             int64_t z, int64_t y, float* sums);

// Results of one block of channels, [tile, kLanes] in scratch, to planes: kRun pixels at a time.
constexpr int64_t kRun = 256;
template <class T>
void finish_planes(const Depthwise& p, const Tile& t, const float* sums, int64_t n, int64_t filter,
                   int64_t count, float* rows) {
  const T *bias = static_cast<const T*>(p.epilogue.bias),
          *residual = static_cast<const T*>(p.epilogue.residual);
  const bool whole_rows = t.size[2] == p.axes[2].out;
  const int64_t length = whole_rows ? t.size[1] * t.size[2] : t.size[2], runs = whole_rows ? 1 : t.size[1];
  for (int64_t z = 0; z < t.size[0]; z++)
    for (int64_t r = 0; r < runs; r++)
      for (int64_t i = 0; i < length; i += kRun) {
        const int64_t some = smaller(kRun, length - i);
        channels_apart(sums + ((z * runs + r) * length + i) * kLanes, some, rows, kRun + 16);
        const int64_t at =
            ((t.begin[0] + z) * p.axes[1].out + t.begin[1] + r) * p.axes[2].out + t.begin[2] + i;
        for (int64_t l = 0; l < count; l++) {
          const int64_t to = (n * p.filters + filter + l) * p.out_pixels() + at;
          finish_run(rows + l * (kRun + 16), some, bias ? load1(bias + filter + l) : 0.f,
                     residual ? residual + to : nullptr, static_cast<T*>(p.result) + to,
                     p.epilogue.activation);
        }
      }
}

// Results of one row of some blocks of channels, [blocks, width, kLanes] in scratch, to pixels.
template <class T>
void finish_row(const Depthwise& p, const float* sums, int64_t width, int64_t pixel, int64_t filter,
                int64_t count) {
  const T *bias = static_cast<const T*>(p.epilogue.bias),
          *residual = static_cast<const T*>(p.epilogue.residual);
  const int64_t at = pixel * p.filters + filter;
  finish_pixels(sums, width, count, bias ? bias + filter : nullptr, residual ? residual + at : nullptr,
                static_cast<T*>(p.result) + at, p.filters, p.epilogue.activation);
}

// Brings what the next chunk reads to L2, while this one computes: share `i` of `n`. (Depth: its first slice.)
template <class T>
void prefetch_image(const Depthwise& p, const T* sample, const Tile& t, int64_t filter, int64_t count,
                    int64_t i, int64_t n) {
  const Window &y = t.window[1], &x = t.window[2];
  const int64_t rows = y.end - y.begin, width = p.axes[2].in, channels = p.filters / p.multiplier;
  const int64_t slice = t.window[0].begin * p.axes[1].in, channel = filter / p.multiplier;
  if (!p.channels_last)
    for (int64_t c = channel + count * i / n; c < channel + count * (i + 1) / n; c++)
      prefetch(sample + c * p.in_pixels() + (slice + y.begin) * width, rows * width);
  else
    for (int64_t r = y.begin + rows * i / n; r < y.begin + rows * (i + 1) / n; r++)
      for (int64_t q = x.begin; q < x.end; q++)
        prefetch(sample + ((slice + r) * width + q) * channels + channel, count);
}

// Some blocks of channels of one sample. next(i, n) follows row i of n.
template <class T, class Next>
void block_tile(const Depthwise& p, const Tile& t, int64_t n, int64_t filter, int64_t count, int64_t distance,
                float* blocks, float* sums, float* rows, ConvolveRow convolve_row, Next next) {
  const int64_t image_channels = p.filters / p.multiplier;
  const T* sample = static_cast<const T*>(p.image) + n * image_channels * p.in_pixels();
  fill_blocks(channels(sample, p.channels_last, image_channels, p.in_pixels(), filter, count, p.multiplier),
              p.axes, t, distance, blocks);
  const float* weights = p.weights + filter / kLanes * p.block_weights;
  if (!p.channels_last) {
    const T* result = static_cast<T*>(p.result) + (n * p.filters + filter) * p.out_pixels();
    const int64_t lines = t.size[0] * t.size[1], all = count * p.out_pixels();
    for (int64_t i = 0; i < lines; i++) {
      if (lines == p.axes[0].out * p.axes[1].out) prefetch(result + all * i / lines, all / lines);
      convolve_row(p.axes, t, blocks, weights, i / t.size[1], i % t.size[1], sums + i * t.size[2] * kLanes);
      next(i, lines);
    }
    return finish_planes<T>(p, t, sums, n, filter, count, rows);
  }
  for (int64_t z = 0; z < t.size[0]; z++)
    for (int64_t y = 0; y < t.size[1]; y++) {
      const int64_t pixel = ((t.begin[0] + z) * p.axes[1].out + t.begin[1] + y) * p.axes[2].out + t.begin[2];
      for (int64_t q = 0; q < t.size[2]; q++)  // a store that misses would wait for what it overwrites
        prefetch(static_cast<T*>(p.result) + (n * p.out_pixels() + pixel + q) * p.filters + filter, count);
      for (int64_t b = 0; b * kLanes < count; b++)
        convolve_row(p.axes, t, blocks + b * distance, weights + b * p.block_weights, z, y,
                     sums + b * t.size[2] * kLanes);
      finish_row<T>(p, sums, t.size[2], n * p.out_pixels() + pixel, filter, count);
      next(z * t.size[1] + y, t.size[0] * t.size[1]);
    }
}

// Chunk: some blocks of kLanes channels of one sample, one tile of them.
template <class T>
void by_blocks(const Depthwise& p, ConvolveRow convolve_row) {
  const int64_t blocks = ceil_div(p.filters, kLanes),
                together = blocks_together(p.axes, blocks, p.channels_last);
  const int64_t groups = ceil_div(blocks, together);
  const Tiling tiling = cut(p.axes, kTileFloats / (kLanes * together));
  const Tile first = tile(p.axes, tiling, 0);
  const int64_t tiles = tiling.tiles(), distance = block_floats(first);
  const int64_t pixels = first.size[0] * first.size[1] * first.size[2];
  const int64_t sums = (p.channels_last ? first.size[2] * together : pixels + kLanes) * kLanes;
  const int64_t rows = p.channels_last ? 0 : kLanes * (kRun + 16);
  const int64_t chunks = p.batch * groups * tiles, channels = p.filters / p.multiplier;
  auto filter = [&](int64_t i) { return i % groups * together * kLanes; };
  auto count = [&](int64_t i) { return smaller(together * kLanes, p.filters - filter(i)); };
  parallel_for(p.threads, chunks, [&](int64_t i) {
    const int64_t next = smaller(i + p.threads, chunks - 1);
    const T* next_sample =
        static_cast<const T*>(p.image) + next / (groups * tiles) * channels * p.in_pixels();
    const Tile t = tile(p.axes, tiling, i / groups % tiles),
               next_tile = tile(p.axes, tiling, next / groups % tiles);
    cpu::Scratch scratch(static_cast<size_t>(distance * together + sums + rows) * sizeof(float));
    float *memory = scratch.floats(), *after = memory + distance * together;
    block_tile<T>(p, t, i / (groups * tiles), filter(i), count(i), distance, memory, after, after + sums,
                  convolve_row, [&](int64_t row, int64_t n) {
                    prefetch_image(p, next_sample, next_tile, filter(next), count(next), row, n);
                  });
  });
}

}  // namespace
}  // namespace dlops
