// The rung `implicit_gemm`, weight pass: tensor cores (sm_80 and later), channels-last float16 and bfloat16.
//
//   dw[o, c, tap] = sum over output pixels of  dy[pixel, o]  x[the pixel that the tap sees, c]
//
// A GEMM with a long K, the pixels of all samples, and a small result [O/G, taps * C/G] per group: K is cut into parts, a
// number that depends on the shape alone, whose sums a second kernel adds in a fixed order. Both operands lie pixel by pixel
// as dy and x do, and ldmatrix transposes them. Columns are (tap, channel) with channels padded to a multiple of 8, so that
// a thread copies the same chunk under the same tap all along.
#pragma once
#include "geometry.cuh"
#include "implicit_tile.cuh"

namespace dlops::conv::implicit {

struct WeightPlan {
  int64_t row_tiles, column_tiles, parts;  // row_tiles, column_tiles: of a group
  int64_t pixels_per_part;                 // a multiple of kDepth
  int64_t columns;                         // taps * chunks * 8
  int64_t x_sample;                        // elements of a sample of x
  int chunks;                              // of 8 channels, per tap and group
  bool wide_x, wide_dy;                    // may they be moved 16 bytes at a time?
};

// An output pixel, and how to get to one that is `step` further on without a division: add the digits of the step.
struct Walk {
  int size[3], step[3], at[3];
  int sample, step_samples;

  DLOPS_DEVICE Walk(const int64_t (&out)[3], int64_t first, int64_t steps) {
#pragma unroll
    for (int a = 2; a >= 0; a--) {
      size[a] = static_cast<int>(out[a]);
      at[a] = static_cast<int>(first % out[a]), step[a] = static_cast<int>(steps % out[a]);
      first /= out[a], steps /= out[a];
    }
    sample = static_cast<int>(first), step_samples = static_cast<int>(steps);
  }
  DLOPS_DEVICE void advance() {
    int carry = 0;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
      at[a] += step[a] + carry;
      carry = at[a] >= size[a];
      if (carry) at[a] -= size[a];
    }
    sample += step_samples + carry;
  }
};

// What one thread copies: of the rows of K that come (kThreads / kChunks apart), chunk `chunk` of dy's and of x's columns.
template <class T, int M>
struct PixelRows {
  static constexpr int kChunks = M / 8, kApart = kThreads / kChunks;
  const ConvWeightParams& p;
  const WeightPlan& plan;
  Walk walk;
  int64_t left;     // pixels of the part, from the thread's next on
  const T *dy, *x;  // dy of that pixel, at the thread's channel; x of sample 0, at the thread's channel
  int64_t dy_left, x_left;  // channels there are; <= 0: none
  int shift[3];             // of the tap

  DLOPS_DEVICE PixelRows(const ConvWeightParams& p, const WeightPlan& plan, int64_t group, int64_t first_row,
                         int64_t first_column, int64_t first, int64_t pixels)
      : p(p), plan(plan), walk(p.out, first + line(), kApart), left(pixels - line()) {
    const int64_t filter = first_row + chunk() * 8, column = first_column / 8 + chunk();
    const int64_t at = column % plan.chunks * 8;
    int64_t tap = column / plan.chunks;
    dy_left = p.group_filters() - filter;
    x_left = tap < p.taps() ? p.group_channels() - at : 0;
    dy = static_cast<const T*>(p.dy) + (first + line()) * p.filters + group * p.group_filters() + filter;
    x = static_cast<const T*>(p.x) + group * p.group_channels() + at;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
      shift[a] = static_cast<int>(tap % p.kernel[a] * p.dilation[a] - p.padding[a]);
      tap /= p.kernel[a];
    }
  }
  static DLOPS_DEVICE int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static DLOPS_DEVICE int line() { return static_cast<int>(threadIdx.x) / kChunks; }

  // A chunk of which `channels` exist.
  static DLOPS_DEVICE void copy(T* to, const T* from, int64_t channels, bool wide) {
    if (wide) {
      ptx::cp_async<16>(to, from, channels > 0);
    } else {
      *reinterpret_cast<uint4*>(to) = load(from, channels, false);
    }
  }
  // The next step of K.
  DLOPS_DEVICE void operator()(T* stage) {
#pragma unroll
    for (int i = 0; i < kDepth / kApart; i++) {
      T* to = stage + place<Major::mn, M>(line() + i * kApart, chunk());
      copy(to, dy, left > 0 ? dy_left : 0, plan.wide_dy);
      bool inside = left > 0;
      unsigned pixel = 0;  // outside of the image it means nothing, and may overflow
#pragma unroll
      for (int a = 0; a < 3; a++) {
        const int seen = walk.at[a] * static_cast<int>(p.stride[a]) + shift[a];
        inside = inside && static_cast<unsigned>(seen) < static_cast<unsigned>(p.in[a]);
        pixel = pixel * static_cast<unsigned>(p.in[a]) + seen;
      }
      copy(to + M * kDepth, x + walk.sample * plan.x_sample + pixel * p.channels, inside ? x_left : 0,
           plan.wide_x);
      walk.advance();
      left -= kApart;
      dy += kApart * p.filters;
    }
  }
};

#define DLOPS_CONV_IMPLICIT_WEIGHT(tile, name, shared) \
  DLOPS_CUDA_KERNEL("conv_weight", "conv", "implicit_gemm", "sm_80 sm_90a", "f16 bf16", tile, name, shared)

constexpr KernelInfo kImplicitWeight = DLOPS_CONV_IMPLICIT_WEIGHT(
    "128 filters x 128 taps and channels x 32 pixels", "conv_implicit_weight", (Tile<128, 128>::kShared));
// sums [parts, O, columns]. A fragment's four lanes write 32 bytes together: whole sectors.
template <class T, int M>
__global__ void __launch_bounds__(kThreads, 2)
    conv_implicit_weight(const __grid_constant__ ConvWeightParams p, const WeightPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  DLOPS_DYNAMIC_SHARED(T, ring, 128);
  int64_t task = blockIdx.x;  // tiles of a part are neighbours: they share its pixels
  const int64_t first_column = task % plan.column_tiles * M;
  task /= plan.column_tiles;
  const int64_t first_row = task % plan.row_tiles * M;
  task /= plan.row_tiles;
  const int64_t group = task % p.groups, part = task / p.groups;
  const int64_t first = part * plan.pixels_per_part, left = p.batch * p.out_pixels() - first;
  const int64_t pixels = left < plan.pixels_per_part ? left : plan.pixels_per_part;

  Sums<M, M> sums = {};
  PixelRows<T, M> load(p, plan, group, first_row, first_column, first, pixels);
  multiply<T, Major::mn, M, M>(sums, ring, static_cast<int>((pixels + kDepth - 1) / kDepth), load);

  const int lane = lane_of_warp();
#pragma unroll
  for (int r = 0; r < M / 32; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int64_t row = first_row + first_row_of_warp<M>() + r * 16 + i * 8 + lane / 4;
      if (row >= p.group_filters()) continue;
      float* to = p.workspace + ((part * p.groups + group) * p.group_filters() + row) * plan.columns;
#pragma unroll
      for (int n = 0; n < M / 16; n++) {
        const int64_t column = first_column + first_column_of_warp<M>() + n * 8 + lane % 4 * 2;
        if (column < plan.columns)
          *reinterpret_cast<float2*>(to + column) = make_float2(sums[r][n][2 * i], sums[r][n][2 * i + 1]);
      }
    }
#endif
}

constexpr int kSumLanes = 8;  // parts that are read side by side

constexpr KernelInfo kImplicitWeightSum =
    DLOPS_CONV_IMPLICIT_WEIGHT("32 weights", "conv_implicit_weight_sum", 0);
// dw = the sum of the parts: of each eighth of them in order, and then of the eighths. Blocks of (32, kSumLanes).
template <class T>
__global__ void __launch_bounds__(32 * kSumLanes)
    conv_implicit_weight_sum(const __grid_constant__ ConvWeightParams p, const WeightPlan plan) {
  DLOPS_SHARED(float, eighth, [kSumLanes][32]);
  const int64_t count = p.filters * plan.columns;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * 32; first < count;
       first += static_cast<int64_t>(gridDim.x) * 32) {
    const int64_t at = first + threadIdx.x;  // count is a multiple of 8, not of 32
    float sum = 0.f;
    if (at < count) {
#pragma unroll 4
      for (int64_t part = threadIdx.y; part < plan.parts; part += kSumLanes)
        sum += p.workspace[part * count + at];
    }
    eighth[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // the eighths are there
    const int64_t filter = at / plan.columns, column = at % plan.columns;
    const int64_t tap = column / (plan.chunks * 8), channel = column % (plan.chunks * 8);
    if (threadIdx.y == 0 && at < count && channel < p.group_channels()) {
#pragma unroll
      for (int i = 1; i < kSumLanes; i++) sum += eighth[i][threadIdx.x];
      static_cast<T*>(p.dw)[(filter * p.group_channels() + channel) * p.taps() + tap] = static_cast<T>(sum);
    }
    __syncthreads();  // and done with
  }
}

}  // namespace dlops::conv::implicit
