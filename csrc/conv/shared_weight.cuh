// The weight gradient on the rung `shared`: the product of two matrices whose common dimension is all pixels of the batch.
//
//   dw[row, column] = sum over pixels m of gathered[row, m] dy[m, column]      row = (tap, channel), channels run first
//
// The tiles are those of shared.cuh: [128 rows, 64 filters of a group], 8 pixels at a time.
#pragma once
#include "parts.cuh"
#include "shared.cuh"

namespace dlops::conv {

// A walk through the pixels of y, sample after sample.
struct PixelWalk {
  int64_t m;  // of all pixels of the batch
  int64_t sample;
  Pixel at;

  DLOPS_DEVICE PixelWalk(const ConvProblem& p, int64_t m)
      : m(m),
        sample(m / p.out_pixels()),
        at(pixel_of(static_cast<int>(m - sample * p.out_pixels()), p.out)) {}
  DLOPS_DEVICE void next(const ConvProblem& p) {
    m++;
    if (++at.x < p.out[2]) return;
    at.x = 0;
    if (++at.y < p.out[1]) return;
    at.y = 0;
    if (++at.z < p.out[0]) return;
    at.z = 0;
    sample++;
  }
};

// A row of dw: its tap, and where it sees from pixel 0 of y. channel -1: there is no such row.
struct WeightRow { int z, y, x, channel; };
DLOPS_DEVICE WeightRow weight_row(const ConvProblem& p, int64_t row) {
  const int channels = static_cast<int>(p.group_channels());
  if (row >= p.taps() * channels) return {0, 0, 0, -1};
  const Pixel k = pixel_of(static_cast<int>(row / channels), p.kernel);
  return {k.z * static_cast<int>(p.dilation[0]) - static_cast<int>(p.padding[0]),
          k.y * static_cast<int>(p.dilation[1]) - static_cast<int>(p.padding[1]),
          k.x * static_cast<int>(p.dilation[2]) - static_cast<int>(p.padding[2]),
          static_cast<int>(row % channels)};
}

// x at the pixel that a row sees from q, 0 outside. image: the group's first channel of sample 0.
template <class T>
DLOPS_DEVICE float seen_value(const ConvProblem& p, const T* image, const Strides& in, const PixelWalk& q,
                              const WeightRow& r) {
  const Pixel i = {q.at.z * static_cast<int>(p.stride[0]) + r.z, q.at.y * static_cast<int>(p.stride[1]) + r.y,
                   q.at.x * static_cast<int>(p.stride[2]) + r.x};
  const bool inside = static_cast<unsigned>(i.z) < p.in[0] && static_cast<unsigned>(i.y) < p.in[1] &&
                      static_cast<unsigned>(i.x) < p.in[2];
  if (r.channel < 0 || !inside) return 0.f;
  return static_cast<float>(
      image[q.sample * in.sample + r.channel * in.channel + pixel_at(i, p.in) * in.pixel]);
}

inline Parts shared_weight_parts(const ConvProblem& p) {
  const int64_t tiles = ceil_div(p.taps() * p.group_channels(), kTileRows) *
                        ceil_div(p.group_filters(), kTileColumns) * p.groups;
  return parts_of(p.batch * p.out_pixels(), tiles, 256, kTileDepth);
}

constexpr KernelInfo kSharedWeight = DLOPS_CONV_CUDA_KERNEL(
    "conv_weight", "shared", "128 taps and channels x 64 filters x 8 pixels", "conv_shared_weight", 0);
template <class T, bool last>
__global__ void __launch_bounds__(kSharedThreads, 3)
    conv_shared_weight(const __grid_constant__ ConvWeightParams p, const Parts parts) {
  constexpr int kEighth = kSharedThreads / kTileDepth, kHalves = kSharedThreads / kTileColumns;
  DLOPS_SHARED(float4, storage, [kSharedFloats / 4]);
  DLOPS_SHARED(WeightRow, row_table, [kTileRows]);
  float* memory = reinterpret_cast<float*>(storage);
  const int thread = static_cast<int>(threadIdx.x);
  const Strides in = strides_of(last, p.channels, p.in_pixels()),
                out = strides_of(last, p.filters, p.out_pixels());
  const int64_t rows = p.taps() * p.group_channels(), filters = p.group_filters(), pixels = p.out_pixels();
  const int64_t row_tiles = tiles(rows, kTileRows), column_tiles = tiles(filters, kTileColumns);
  for (int64_t task = blockIdx.x; task < row_tiles * column_tiles * p.groups * parts.count;
       task += gridDim.x) {
    const int64_t first_row = task % row_tiles * kTileRows,
                  first_column = task / row_tiles % column_tiles * kTileColumns;
    const int64_t group = task / row_tiles / column_tiles % p.groups,
                  part = task / row_tiles / column_tiles / p.groups;
    const int64_t begin = part * parts.size, all = p.batch * pixels;
    const int64_t end = begin + parts.size < all ? begin + parts.size : all;
    const T* x = static_cast<const T*>(p.x) + group * p.group_channels() * in.channel;
    const T* dy = static_cast<const T*>(p.dy) + (group * filters + first_column) * out.channel;
    const WeightRow mine = weight_row(p, first_row + thread);
    if constexpr (!last) {
      row_table[thread] = mine;
      __syncthreads();  // the table is there
    }

    // channels_last: a thread has one row and walks over the pixels, neighbours read neighbouring channels. NCHW: it has
    // every 8th pixel, of 8 rows, and neighbours read neighbouring pixels.
    PixelWalk walk(p, begin + (last ? 0 : thread % kTileDepth));
    float next[kTileDepth], next_dy[kTileColumns * kTileDepth / kSharedThreads];
    auto take = [&] {
      if constexpr (last) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int64_t m = walk.m + thread / kTileColumns + kHalves * i, column = thread % kTileColumns;
          next_dy[i] = m < end && first_column + column < filters
                           ? static_cast<float>(dy[m * p.filters + column])
                           : 0.f;
        }
#pragma unroll
        for (int k = 0; k < kTileDepth; k++) {
          next[k] = walk.m < end ? seen_value(p, x, in, walk, mine) : 0.f;
          walk.next(p);
        }
      } else {
        const T* at = dy + walk.sample * out.sample + pixel_at(walk.at, p.out);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int64_t column = thread / kTileDepth + kEighth * i;
          next_dy[i] = walk.m < end && first_column + column < filters
                           ? static_cast<float>(at[column * out.channel])
                           : 0.f;
        }
#pragma unroll
        for (int i = 0; i < kTileDepth; i++)
          next[i] =
              walk.m < end ? seen_value(p, x, in, walk, row_table[thread / kTileDepth + kEighth * i]) : 0.f;
#pragma unroll 1
        for (int k = 0; k < kTileDepth; k++) walk.next(p);
      }
    };
    auto put = [&](float* stage) {
      float* columns = stage + kTileDepth * kRowPitch;
#pragma unroll
      for (int i = 0; i < kTileDepth; i++)
        if constexpr (last)
          stage[i * kRowPitch + thread] = next[i];
        else
          stage[thread % kTileDepth * kRowPitch + thread / kTileDepth + kEighth * i] = next[i];
#pragma unroll
      for (int i = 0; i < 4; i++)
        if constexpr (last)
          columns[(thread / kTileColumns + kHalves * i) * kColumnPitch + thread % kTileColumns] = next_dy[i];
        else
          columns[thread % kTileDepth * kColumnPitch + thread / kTileDepth + kEighth * i] = next_dy[i];
    };

    Products products{};
    take();
    put(memory);
    __syncthreads();  // the first tile is there
    const int64_t steps = tiles(end - begin, kTileDepth);
    for (int64_t step = 0; step < steps; step++) {
      float* stage = memory + step % 2 * kStage;
      const bool more = step + 1 < steps;
      if (more) take();
      products.add(stage, stage + kTileDepth * kRowPitch);
      if (more) put(memory + (step + 1) % 2 * kStage);
      __syncthreads();  // the next tile is there, and this one is read
    }

    const int64_t row = first_row + thread;  // the one that `each` gives this thread
    float* to = p.workspace + part * p.filters * rows + (group * filters + first_column) * rows +
                row % p.group_channels() * p.taps() + row / p.group_channels();
    products.template each<false>(memory, [&](int, int column, float sum) {
      if (row < rows && first_column + column < filters) to[column * rows] = sum;
    });
  }
}

template <class T>
int run_shared_weight(const ConvWeightParams& p, cudaStream_t stream) {
  const Parts parts = shared_weight_parts(p);
  const int64_t tasks = ceil_div(p.taps() * p.group_channels(), kTileRows) *
                        ceil_div(p.group_filters(), kTileColumns) * p.groups * parts.count;
  const Launch l{task_grid(tasks), dim3(kSharedThreads), 0, stream};
  const int error = p.channels_last ? launch(conv_shared_weight<T, true>, l, p, parts)
                                    : launch(conv_shared_weight<T, false>, l, p, parts);
  return error != cudaSuccess ? error : sum_parts<T>(p, parts.count, stream);
}

}  // namespace dlops::conv
