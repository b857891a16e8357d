// The rung `implicit_gemm`, forward and data pass: tensor cores (sm_80 and later), channels-last float16 and bfloat16.
//
//   forward  y[pixel, o]  = sum over (tap, c) of  x[the pixel that the tap sees, c]  w[o, c, tap]
//   data     dx[pixel, c] = sum over (tap, o) of dy[the pixel whose tap sees it, o]  w[o, c, tap]
//
// Both are a GEMM whose left operand [pixels, taps * channels] is never in memory: each row of it is gathered, pixel by
// pixel, while its tile is copied to shared memory ("implicit": Chetlur et al. 2014, cuDNN, section 3.1). The right operand
// is a copy of the weights, [rows, taps, channels] with channels padded to a multiple of 8 by zeros, that a small kernel
// makes on every call.
//
// In the data pass of a convolution with strides, pixels that lie a stride apart see the same taps, and others see other
// taps: they are as many problems as there are phases (stride^dimensions), each with stride 1 and a few of the taps.
//
// On Hopper a rung with TMA im2col copies and wgmma would be dispatched in launch_implicit*.cu, before this one.
#pragma once
#include "epilogue.cuh"
#include "geometry.cuh"
#include "implicit_tile.cuh"

namespace dlops::conv::implicit {

struct GatherParams : ConvProblem {
  const void *source, *weights;  // x or dy; [result_channels, taps, chunks * 8]
  void* result;
  ConvEpilogue epilogue;
  int64_t source_size[3], result_size[3];
  int64_t source_channels, result_channels;  // of all groups
  int64_t source_depth, result_depth;        // of one group
  int64_t source_sample;                     // elements of a sample
  int64_t row_tiles, column_tiles;           // per group; of the largest phase
  int64_t weights_row;                       // elements: taps * chunks * 8
  int chunks;                                // of 8 source channels, per tap and group
  bool wide, wide_result;                    // may source and result be moved 16 bytes at a time?
};

// ---- the weights ----

// rows: result channels of all groups. depth: source channels of a group.
struct Arrangement { int64_t rows, depth, taps, chunks, group_rows; };

constexpr KernelInfo kImplicitArrange = DLOPS_CUDA_KERNEL(
    "conv", "conv", "implicit_gemm", "sm_80 sm_90a", "f16 bf16", "8 weights", "conv_implicit_arrange", 0);
// w [O, C/G, taps] -> [rows, taps, chunks * 8]. Neighbouring threads take neighbouring taps, and then what is next in w, so
// that reads come together; what each writes, 16 bytes, is half a sector.
template <class T, bool data>
__global__ void __launch_bounds__(kRowThreads) conv_implicit_arrange(const T* w, T* to, const Arrangement a) {
  for (int64_t i = flat_thread(); i < a.rows * a.taps * a.chunks; i += flat_threads()) {
    const int64_t tap = i % a.taps, rest = i / a.taps;
    const int64_t row = data ? rest % a.rows : rest / a.chunks,
                  chunk = data ? rest / a.rows : rest % a.chunks;
    const int64_t group = row / a.group_rows,
                  step = data ? a.group_rows * a.taps : a.taps;  // to the next channel
    const T* from = data ? w + (group * a.depth * a.group_rows + row % a.group_rows) * a.taps
                         : w + row * a.depth * a.taps;
    from += tap + chunk * 8 * step;
    uint32_t word[4] = {0, 0, 0, 0};
    const BitsOf<T>* bits = reinterpret_cast<const BitsOf<T>*>(from);
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (chunk * 8 + j < a.depth)
        word[word_of<T>(j)] |= static_cast<uint32_t>(bits[j * step]) << bit_of<T>(j);
    reinterpret_cast<uint4*>(to)[(row * a.taps + tap) * a.chunks + chunk] = words(word);
  }
}

// ---- rows and taps ----

// Along one axis: which results the rows are, and what their taps see.
struct Axis {
  int rows, first, spread;  // row t is result first + t * spread
  int start, advance;       // its first tap sees start + t * advance of the source,
  int taps, dilation;       // tap j sees what is j * dilation further on,
  int tap, tap_step;        // and is the kernel's tap + j * tap_step
  int size;                 // of the source
};

constexpr DLOPS_DEVICE int greatest_divisor(int a, int b) {
  while (b != 0) {
    const int rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Of the data pass, along one axis.
constexpr DLOPS_DEVICE int phases(const GatherParams& p, int axis) {
  return static_cast<int>(p.stride[axis] < p.result_size[axis] ? p.stride[axis] : p.result_size[axis]);
}

template <bool data>
DLOPS_DEVICE Axis axis_of(const GatherParams& p, int axis, int phase) {
  const int kernel = static_cast<int>(p.kernel[axis]), stride = static_cast<int>(p.stride[axis]);
  const int dilation = static_cast<int>(p.dilation[axis]), padding = static_cast<int>(p.padding[axis]);
  const int source = static_cast<int>(p.source_size[axis]), result = static_cast<int>(p.result_size[axis]);
  if (!data) return {result, 0, 1, -padding, stride, kernel, dilation, 0, 1, source};
  // Result i is seen by tap k of output (i + padding - k dilation) / stride, if that is whole. Results `phase`, phase +
  // stride, ... agree on the k for which it is: every period-th from the first on.
  const int divisor = greatest_divisor(stride, dilation), period = stride / divisor, from = phase + padding;
  int tap = 0;
  while (tap < kernel && tap < period && (from - tap * dilation) % stride != 0) tap++;
  const bool any = tap < kernel && tap < period;
  Axis found{};
  found.rows = phase < result ? (result - phase + stride - 1) / stride : 0;
  found.first = phase, found.spread = stride;
  found.start = any ? (from - tap * dilation) / stride : 0, found.advance = 1;
  found.taps = any ? (kernel - tap + period - 1) / period : 0, found.dilation = -(dilation / divisor);
  found.tap = tap, found.tap_step = period;
  found.size = source;
  return found;
}

// A row of the tile: its result, and where in the source its first tap is. sample -1: there is no such row.
struct alignas(16) Row { int sample, z, y, x; };

template <int M>
DLOPS_DEVICE void find_rows(Row (&rows)[M], int64_t (&results)[M], const GatherParams& p,
                            const Axis (&axis)[3], int64_t first) {
  for (int r = static_cast<int>(threadIdx.x); r < M; r += kThreads) {
    const int64_t per = static_cast<int64_t>(axis[0].rows) * axis[1].rows * axis[2].rows, at = first + r;
    if (at >= p.batch * per) {
      rows[r] = {-1, 0, 0, 0};
      results[r] = -1;
      continue;
    }
    const int pixel = static_cast<int>(at % per), line = pixel / axis[2].rows;
    const int t[3] = {line / axis[1].rows, line % axis[1].rows, pixel % axis[2].rows};
    const int64_t sample = at / per;
    rows[r] = {static_cast<int>(sample), axis[0].start + t[0] * axis[0].advance,
               axis[1].start + t[1] * axis[1].advance, axis[2].start + t[2] * axis[2].advance};
    int64_t result = sample;
#pragma unroll
    for (int a = 0; a < 3; a++) result = result * p.result_size[a] + axis[a].first + t[a] * axis[a].spread;
    results[r] = result * p.result_channels;
  }
}

// What one thread copies: chunk column threadIdx.x % 4 of every 32nd row of both operands. K is (tap, chunk of channels);
// the thread walks its fourth of it.
template <class T, int M, int N>
struct Gather {
  const GatherParams& p;
  const Axis (&axis)[3];
  const Row (&rows)[M];
  const T *source, *weights;  // of the group; of the thread's first row
  int columns;                // of the tile that exist, from that row on
  int chunk, tap[3];
  int64_t seen[M / 32];  // by this tap: offsets in the source, -1: none
  const T* tap_weights;  // of the thread's first row

  DLOPS_DEVICE Gather(const GatherParams& p, const Axis (&axis)[3], const Row (&rows)[M], int64_t group,
                      int64_t first_column)
      : p(p), axis(axis), rows(rows), chunk(static_cast<int>(threadIdx.x) % 4), tap{0, 0, 0} {
    const int64_t left = p.result_depth - first_column;
    columns = (left < N ? static_cast<int>(left) : N) - line();
    source = static_cast<const T*>(p.source) + group * p.source_depth;
    weights =
        static_cast<const T*>(p.weights) + (group * p.result_depth + first_column + line()) * p.weights_row;
    tap_weights = weights;
#pragma unroll
    for (int i = 0; i < M / 32; i++) seen[i] = -1;
    settle();
    look();
  }

  static DLOPS_DEVICE int line() { return static_cast<int>(threadIdx.x) / 4; }
  DLOPS_DEVICE bool over() const { return tap[0] >= axis[0].taps; }
  // chunk counts on into the next taps.
  DLOPS_DEVICE void settle() {
    while (chunk >= p.chunks && !over()) {
      chunk -= p.chunks;
      if (++tap[2] < axis[2].taps) continue;
      tap[2] = 0;
      if (++tap[1] < axis[1].taps) continue;
      tap[1] = 0;
      ++tap[0];
    }
  }
  // Where the rows see the source by this tap.
  DLOPS_DEVICE void look() {
    if (over()) return;
    int64_t weight = 0;
    int ahead[3];
#pragma unroll
    for (int a = 0; a < 3; a++) {
      ahead[a] = tap[a] * axis[a].dilation;
      weight = weight * p.kernel[a] + axis[a].tap + tap[a] * axis[a].tap_step;
    }
    tap_weights = weights + weight * p.chunks * 8;
#pragma unroll
    for (int i = 0; i < M / 32; i++) {
      const Row row = rows[line() + i * 32];
      int at[3] = {row.z + ahead[0], row.y + ahead[1], row.x + ahead[2]};
      bool inside = true;
#pragma unroll
      for (int a = 0; a < 3; a++)
        inside = inside && static_cast<unsigned>(at[a]) < static_cast<unsigned>(axis[a].size);
      if (!inside && p.padding_mode != PaddingMode::zeros) {
        inside = true;
#pragma unroll
        for (int a = 0; a < 3; a++) at[a] = padded(at[a], axis[a].size, p.padding_mode);
      }
      // Unsigned: outside of the source it means nothing, and may overflow.
      const unsigned pixel = (static_cast<unsigned>(at[0]) * axis[1].size + at[1]) * axis[2].size + at[2];
      seen[i] = inside && row.sample >= 0 ? row.sample * p.source_sample + pixel * p.source_channels : -1;
    }
  }

  // The next step of K: the pattern of `place` is the same 32 rows on.
  DLOPS_DEVICE void operator()(T* stage) {
    const int at = chunk * 8;
    const bool exists = !over();
    T* to = stage + place<Major::k, M>(line(), static_cast<int>(threadIdx.x) % 4);
    if (p.wide) {
#pragma unroll
      for (int i = 0; i < M / 32; i++)
        // An address that is not read must be aligned as well.
        ptx::cp_async<16>(to + i * 32 * kDepth, source + (seen[i] < 0 ? 0 : seen[i] + at),
                          exists && seen[i] >= 0);
    } else {
#pragma unroll
      for (int i = 0; i < M / 32; i++)
        *reinterpret_cast<uint4*>(to + i * 32 * kDepth) =
            load(source + seen[i] + at, exists && seen[i] >= 0 ? p.source_depth - at : 0, false);
    }
    to += M * kDepth;
#pragma unroll
    for (int i = 0; i < N / 32; i++)
      ptx::cp_async<16>(to + i * 32 * kDepth, tap_weights + i * 32 * p.weights_row + at,
                        exists && i * 32 < columns);
    chunk += 4;
    if (chunk >= p.chunks) {
      settle();
      look();
    }
  }
};

// ---- the result ----

// Through the ring, a warp's [M / 2, N / 2] for itself, so that a lane gets 8 neighbouring channels: memory is met in whole
// sectors, and bias, residual and activation have the sum in float32. Chunks of 4 move by the row in pairs: a half-warp
// writes 4 rows of 2 chunks, a quarter reads 8 chunks of one or two rows, of pairs half of the lanes the second chunk first.
template <int N>
DLOPS_DEVICE int result_place(int row, int chunk) {
  return row * (N / 2) + (chunk ^ (row & 3) * 2) * 4;
}
template <class T, int M, int N>
DLOPS_DEVICE void write_result(const Sums<M, N>& sums, float* ring, const int64_t (&results)[M],
                               const GatherParams& p, int64_t group, int64_t first_column) {
  constexpr int kChunks = N / 16;  // of 8 channels, in a warp's row
  const int lane = lane_of_warp();
  float* mine = ring + static_cast<int>(threadIdx.x) / 32 * (M / 2) * (N / 2);
  __syncthreads();  // nobody reads the ring any more
#pragma unroll
  for (int r = 0; r < M / 32; r++)
#pragma unroll
    for (int n = 0; n < N / 16; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float* at = mine + result_place<N>(r * 16 + i * 8 + lane / 4, n * 2 + lane % 4 / 2) + lane % 2 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sums[r][n][2 * i], sums[r][n][2 * i + 1]);
      }
  __syncwarp();  // the warp's results are there
  const int chunk = lane % kChunks, odd = lane / 4 % 2;
  const int64_t column = first_column + first_column_of_warp<N>() + chunk * 8, left = p.result_depth - column;
  const int64_t channel = group * p.result_depth + column;
  const ConvEpilogue& epilogue = p.epilogue;
  float bias[8] = {}, more[8] = {};
  if (epilogue.bias) unpack<T>(load(static_cast<const T*>(epilogue.bias) + channel, left, false), bias);
#pragma unroll 1
  for (int row = lane / kChunks; row < M / 2; row += 32 / kChunks) {
    const float4 u = *reinterpret_cast<const float4*>(mine + result_place<N>(row, chunk * 2 + odd));
    const float4 v = *reinterpret_cast<const float4*>(mine + result_place<N>(row, chunk * 2 + 1 - odd));
    const float4 low = odd ? v : u, high = odd ? u : v;
    float sum[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const int64_t pixel = results[first_row_of_warp<M>() + row], to = pixel + channel;
    if (pixel < 0 || left <= 0) continue;
    if (epilogue.residual)
      unpack<T>(load(static_cast<const T*>(epilogue.residual) + to, left, p.wide_result), more);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += bias[i] + more[i];
    activate_all(sum, epilogue.activation);
    store(static_cast<T*>(p.result) + to, pack<T>(sum), left, p.wide_result);
  }
}

// ---- a tile ----

template <class T, int M, int N, bool data>
DLOPS_DEVICE void gather_tile(const GatherParams& p) {
  DLOPS_DYNAMIC_SHARED(T, ring, 128);
  DLOPS_SHARED(Axis, axis, [3]);
  DLOPS_SHARED(Row, rows, [M]);
  DLOPS_SHARED(int64_t, results, [M]);  // where each row's result begins
  int64_t task = blockIdx.x;            // columns fastest: neighbours share what they gather
  const int64_t first_column = task % p.column_tiles * N;
  task /= p.column_tiles;
  const int64_t first_row = task % p.row_tiles * M;
  task /= p.row_tiles;
  const int64_t group = task % p.groups;
  task /= p.groups;
  if (threadIdx.x == 0) {
    int phase = static_cast<int>(task);
    for (int a = 2; a >= 0; a--) {
      const int count = data ? phases(p, a) : 1;
      axis[a] = axis_of<data>(p, a, phase % count);
      phase /= count;
    }
  }
  __syncthreads();  // the axes are there
  if (first_row >= p.batch * axis[0].rows * axis[1].rows * axis[2].rows)
    return;  // of a smaller phase than others
  find_rows<M>(rows, results, p, axis, first_row);
  __syncthreads();  // the rows are there

  Sums<M, N> sums = {};
  const int taps = axis[0].taps * axis[1].taps * axis[2].taps;
  Gather<T, M, N> load(p, axis, rows, group, first_column);
  multiply<T, Major::k, M, N>(sums, ring, (taps * p.chunks + 3) / 4, load);
  write_result<T, M, N>(sums, reinterpret_cast<float*>(ring), results, p, group, first_column);
}

#define DLOPS_CONV_IMPLICIT_KERNEL(op, tile, name)                                       \
  DLOPS_CUDA_KERNEL(op, "conv", "implicit_gemm", "sm_80 sm_90a", "f16 bf16", tile, name, \
                    (Tile<128, 128>::kShared))

constexpr KernelInfo kImplicitForward =
    DLOPS_CONV_IMPLICIT_KERNEL("conv", "128 pixels x 128 filters x 32", "conv_implicit_forward");
template <class T, int M, int N>
__global__ void __launch_bounds__(kThreads, 2) conv_implicit_forward(const __grid_constant__ GatherParams p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  gather_tile<T, M, N, false>(p);
#endif
}

constexpr KernelInfo kImplicitData =
    DLOPS_CONV_IMPLICIT_KERNEL("conv_data", "128 pixels x 128 channels x 32", "conv_implicit_data");
template <class T, int M, int N>
__global__ void __launch_bounds__(kThreads, 2) conv_implicit_data(const __grid_constant__ GatherParams p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  gather_tile<T, M, N, true>(p);
#endif
}

}  // namespace dlops::conv::implicit
