// The rung `shared`: convolution as a matrix product on the float32 cores, whose left matrix is never made.
//
//   result[row, column] = sum over k of gathered[row, k] weights[k, column]      k = (tap, channel), channels run first
//
//             rows                    columns             k                     gathered[row, (tap, channel)]
//   forward   pixels of y, N q        filters of a group  (tap, c of a group)   x[n, c, pixel that tap sees from q], or 0
//   data      pixels of x, N i        channels of a group (tap, o of a group)   dy[n, o, pixel whose tap sees i], or 0
//
// A block makes [128 rows, 64 columns], 8 k at a time in shared memory; each of its 128 threads holds 8 x 8 sums, so that a
// number read from shared memory serves 8 products. While a tile is multiplied the next one is on its way to registers. The
// data pass with a stride multiplies zeros for the taps that miss: it is 1/stride^2 useful.
#pragma once
#include "epilogue.cuh"
#include "geometry.cuh"

namespace dlops::conv {

constexpr int kSharedThreads = 128, kTileRows = 128, kTileColumns = 64, kTileDepth = 8;
// Pitches of a tile's rows, + 4: what a warp writes down a column lies in different banks.
constexpr int kRowPitch = kTileRows + 4, kColumnPitch = kTileColumns + 4;
constexpr int kStage = kTileDepth * (kRowPitch + kColumnPitch);  // floats of a pair of tiles: two are in use
constexpr int kSharedFloats = kTileColumns / 2 * kRowPitch;      // what the way out needs, which is more
static_assert(kSharedFloats >= 2 * kStage && kSharedFloats % 4 == 0);

// ---- the product of two tiles ----

// Thread (x, y) of 16 x 8 has rows 4x .. 4x + 3 and 64 more, columns 4y .. 4y + 3 and 32 more: as a warp reads them,
// neighbours are 16 bytes apart.
struct Products {
  float sum[8][8];

  DLOPS_DEVICE void add(const float* rows, const float* columns) {
    const int x = static_cast<int>(threadIdx.x) % 16 * 4, y = static_cast<int>(threadIdx.x) / 16 * 4;
#pragma unroll
    for (int k = 0; k < kTileDepth; k++) {
      float a[8], b[8];
      read(rows + k * kRowPitch + x, kTileRows / 2, a);
      read(columns + k * kColumnPitch + y, kTileColumns / 2, b);
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }

  // Through shared memory, half of the columns at a time, so that what is written lies together and the code that
  // finishes an element exists once: write(row, column, sum), rows first or columns first over the threads.
  template <bool columns_first, class F>
  DLOPS_DEVICE void each(float* memory, F write) const {
    constexpr int kHalf = kTileColumns / 2, kPitch = kTileRows + 1;
    static_assert(kHalf * kPitch <= kSharedFloats);
    const int thread = static_cast<int>(threadIdx.x), x = thread % 16 * 4, y = thread / 16 * 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      __syncthreads();  // the last use of memory is over
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          memory[(y + j) * kPitch + x + i % 4 + i / 4 * (kTileRows / 2)] = sum[i][4 * half + j];
      __syncthreads();  // the half is written
#pragma unroll 1
      for (int e = thread; e < kTileRows * kHalf; e += kSharedThreads) {
        const int row = columns_first ? e / kHalf : e % kTileRows,
                  column = columns_first ? e % kHalf : e / kTileRows;
        write(row, column + half * kHalf, memory[column * kPitch + row]);
      }
    }
    __syncthreads();  // the next task may fill memory
  }

 private:
  DLOPS_DEVICE static void read(const float* from, int apart, float (&v)[8]) {
    const float4 low = *reinterpret_cast<const float4*>(from),
                 high = *reinterpret_cast<const float4*>(from + apart);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
};

// ---- the right matrix: made once per call, [groups, depth, columns] in float32, padded with zeros to whole tiles ----

struct SharedShape { int64_t depth, columns, column_tiles, steps; };  // depth, columns: without the padding
constexpr SharedShape shared_shape(const ConvProblem& p, bool data) {
  const int64_t depth = p.taps() * (data ? p.group_filters() : p.group_channels());
  const int64_t columns = data ? p.group_channels() : p.group_filters();
  return {depth, columns, tiles(columns, kTileColumns), tiles(depth, kTileDepth)};
}

constexpr KernelInfo kSharedWeights =
    DLOPS_CONV_CUDA_KERNEL("conv", "shared", "1 element", "conv_shared_weights", 0);
template <class T, bool data>
__global__ void __launch_bounds__(kRowThreads)
    conv_shared_weights(const __grid_constant__ ConvProblem p, const void* w, float* out) {
  const SharedShape s = shared_shape(p, data);
  const int64_t rows = s.steps * kTileDepth, width = s.column_tiles * kTileColumns;
  const int64_t channels = p.group_channels(), filters = p.group_filters(),
                reduced = data ? filters : channels;
  for (int64_t at = flat_thread(); at < p.groups * rows * width; at += flat_threads()) {
    const int64_t column = at % width, k = at / width % rows, group = at / width / rows;
    float v = 0.f;
    if (column < s.columns && k < s.depth) {
      const int64_t tap = k / reduced, o = data ? k % reduced : column, c = data ? column : k % reduced;
      v = static_cast<float>(
          static_cast<const T*>(w)[((group * filters + o) * channels + c) * p.taps() + tap]);
    }
    out[at] = v;
  }
}

// ---- the left matrix: a thread walks along one row of it ----

// How the channels of a tap lie: any number of them; tiles never hold two taps; besides, 4 may be loaded at once.
enum class Run { any, whole_tiles, quads };

template <class T, bool data>
struct Gather {
  const T* image;  // the row's sample, the group's first channel
  const T* at;     // the next element, if the tap sees any
  Pixel pixel, tap;
  int channel, channels;
  bool seen;

  // exists: or the row is beyond the last, and all zeros.
  DLOPS_DEVICE Gather(const ConvProblem& p, const T* image, int pixel, int channels, bool exists)
      : image(image), pixel(pixel_of(pixel, data ? p.in : p.out)), channels(channels) {
    tap = {exists ? 0 : static_cast<int>(p.kernel[0]), 0, 0};
    look(p);
  }
  DLOPS_DEVICE void look(const ConvProblem& p) {
    channel = 0;
    seen = false;
    if (tap.z >= static_cast<int>(p.kernel[0])) return;  // past the last tap
    const int found = data ? pixel_that_sees(p, pixel, tap) : pixel_seen_by(p, pixel, tap);
    seen = found >= 0;
    if (!seen) return;
    at = image + found * (p.channels_last ? data ? p.filters : p.channels : 1);
  }
  DLOPS_DEVICE void next_tap(const ConvProblem& p) {
    if (++tap.x == static_cast<int>(p.kernel[2])) {
      tap.x = 0;
      if (++tap.y == static_cast<int>(p.kernel[1])) tap.y = 0, tap.z++;
    }
    look(p);
  }
  // The next kTileDepth elements.
  template <Run run>
  DLOPS_DEVICE void take(const ConvProblem& p, int64_t channel_stride, float (&v)[kTileDepth]) {
    constexpr int V = run == Run::quads ? 4 : 1;
#pragma unroll
    for (int k = 0; k < kTileDepth; k += V) {
      float some[4] = {};
      if (seen) {
        if constexpr (run == Run::quads)
          load_quad(at, some);
        else
          some[0] = static_cast<float>(*at);
        at += V * channel_stride;
      }
#pragma unroll
      for (int i = 0; i < V; i++) v[k + i] = some[i];
      if constexpr (run == Run::any)
        if (++channel == channels) next_tap(p);
    }
    if constexpr (run != Run::any)
      if ((channel += kTileDepth) == channels) next_tap(p);
  }
};

// ---- forward and data ----

struct SharedParams : ConvProblem {
  const void* from;
  const float* weights;
  ConvEpilogue epilogue;
  void* to;
};

constexpr KernelInfo kSharedForward =
    DLOPS_CONV_CUDA_KERNEL("conv", "shared", "128 pixels x 64 filters x 8", "conv_shared", 0);
constexpr KernelInfo kSharedData =
    DLOPS_CONV_CUDA_KERNEL("conv_data", "shared", "128 pixels x 64 channels x 8", "conv_shared", 0);
template <class T, bool data, Run run>
__global__ void __launch_bounds__(kSharedThreads, 3) conv_shared(const __grid_constant__ SharedParams p) {
  DLOPS_SHARED(float4, storage, [kSharedFloats / 4]);
  float* memory = reinterpret_cast<float*>(storage);
  const SharedShape s = shared_shape(p, data);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t pixels = data ? p.in_pixels() : p.out_pixels(), rows = p.batch * pixels;
  const int64_t result_channels = data ? p.channels : p.filters, reduced = s.depth / p.taps();
  const Strides from = data ? strides_of(p.channels_last, p.filters, p.out_pixels())
                            : strides_of(p.channels_last, p.channels, p.in_pixels());
  const int64_t tasks = tiles(rows, kTileRows) * p.groups * s.column_tiles;
  const int64_t width = s.column_tiles * kTileColumns;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t tile = task % s.column_tiles, group = task / s.column_tiles % p.groups;
    const int64_t first = task / s.column_tiles / p.groups * kTileRows, row = first + thread;
    const int64_t sample = row < rows ? row / pixels : 0;
    Gather<T, data> gather(
        p, static_cast<const T*>(p.from) + sample * from.sample + group * reduced * from.channel,
        static_cast<int>(row < rows ? row % pixels : 0), static_cast<int>(reduced), row < rows);
    // Of the 8 x 64 weights a thread takes columns 4 (thread % 16) .. + 3 of row thread / 16.
    const float4* weights =
        reinterpret_cast<const float4*>(p.weights + (group * s.steps * kTileDepth + thread / 16) * width +
                                        tile * kTileColumns + thread % 16 * 4);

    float next[kTileDepth];
    float4 next_weights;
    auto take = [&] {
      gather.template take<run>(p, from.channel, next);
      next_weights = *weights;
      weights += kTileDepth * width / 4;
    };
    auto put = [&](float* stage) {
#pragma unroll
      for (int k = 0; k < kTileDepth; k++) stage[k * kRowPitch + thread] = next[k];
      *reinterpret_cast<float4*>(stage + kTileDepth * kRowPitch + thread / 16 * kColumnPitch +
                                 thread % 16 * 4) = next_weights;
    };

    Products products{};
    take();
    put(memory);
    __syncthreads();  // the first tile is there
    for (int64_t step = 0; step < s.steps; step++) {
      float* stage = memory + step % 2 * kStage;
      const bool more = step + 1 < s.steps;
      if (more) take();
      products.add(stage, stage + kTileDepth * kRowPitch);
      if (more) put(memory + (step + 1) % 2 * kStage);
      __syncthreads();  // the next tile is there, and this one is read
    }

    const int64_t first_channel = group * s.columns + tile * kTileColumns;
    auto finish_at = [&](int64_t at, int column, float sum) {
      if (column + tile * kTileColumns < s.columns)
        finish<T>(p.epilogue, p.to, at, first_channel + column, sum);
    };
    if (p.channels_last) {
      products.template each<true>(memory, [&](int r, int column, float sum) {
        if (first + r < rows) finish_at((first + r) * result_channels + first_channel + column, column, sum);
      });
    } else {  // r is this thread, so its row is the one it gathered
      const int64_t base = (sample * result_channels + first_channel) * pixels + (row - sample * pixels);
      products.template each<false>(memory, [&](int, int column, float sum) {
        if (row < rows) finish_at(base + column * pixels, column, sum);
      });
    }
  }
}

// ---- the host's side ----

inline int64_t shared_workspace(const ConvProblem& p, bool data) {
  const SharedShape s = shared_shape(p, data);
  return p.groups * s.steps * kTileDepth * s.column_tiles * kTileColumns;
}

template <class T, bool data, class P>
int run_shared(const P& p, const void* from, void* to, cudaStream_t stream) {
  int error =
      launch(conv_shared_weights<T, data>,
             {flat_grid(shared_workspace(p, data)), dim3(kRowThreads), 0, stream}, p, p.w, p.workspace);
  if (error != cudaSuccess) return error;
  SharedParams s{};
  static_cast<ConvProblem&>(s) = p;
  s.from = from, s.to = to, s.weights = p.workspace, s.epilogue = p.epilogue;
  const int64_t reduced = data ? p.group_filters() : p.group_channels();
  const bool whole = reduced % kTileDepth == 0;
  const bool quads = whole && p.channels_last && quads_aligned<T>(from);
  const int64_t rows = p.batch * (data ? p.in_pixels() : p.out_pixels());
  const Launch l{task_grid(tiles(rows, kTileRows) * p.groups * shared_shape(p, data).column_tiles),
                 dim3(kSharedThreads), 0, stream};
  return quads   ? launch(conv_shared<T, data, Run::quads>, l, s)
         : whole ? launch(conv_shared<T, data, Run::whole_tiles>, l, s)
                 : launch(conv_shared<T, data, Run::any>, l, s);
}

}  // namespace dlops::conv
