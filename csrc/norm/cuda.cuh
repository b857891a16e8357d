// What the norm kernels share on the GPU. See README.md of this folder for the maths and the ladder of variants.
#pragma once
#include "../catalogue.h"
#include "../cuda/reduce.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "params.h"

namespace dlops::norm {

#define DLOPS_NORM_KERNEL(op, variant, tile, name) \
  DLOPS_CUDA_KERNEL(op, "norm", variant, "sm_75 sm_80 sm_90a", "f32 f16 bf16", tile, name, 0)

constexpr int kThreads = 256;  // of kernels that do not say otherwise

// A weight, bias, scale or shift that may be absent; T or float32.
template <class T>
struct Param {
  const void* data;
  Dtype dtype;

  DLOPS_DEVICE float at(int64_t i, float absent) const {
    if (!data) return absent;
    if (dtype == Dtype::f32) return static_cast<const float*>(data)[i];
    return static_cast<float>(static_cast<const T*>(data)[i]);
  }
  // Values i .. i + kVec<T> - 1, of which `left` exist. wide: 16-byte aligned, and i and the size whole chunks.
  DLOPS_DEVICE void chunk(int64_t i, int64_t left, bool wide, float absent, float (&v)[kVec<T>]) const {
    if (wide && data && left > 0) {
      if (dtype == Dtype::f32) {
#pragma unroll
        for (int q = 0; q < kQuads<T>; q++) {
          float quad[4];
          unpack<float>(__ldg(static_cast<const uint4*>(data) + i / 4 + q), quad);
#pragma unroll
          for (int j = 0; j < 4; j++) v[4 * q + j] = quad[j];
        }
      } else {
        unpack<T>(__ldg(static_cast<const uint4*>(data) + i / kVec<T>), v);
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kVec<T>; j++) v[j] = j < left ? at(i + j, absent) : absent;
  }
};

// 1 / (1 + exp(-z)). Outputs of 16 bits hide the error of the fast instructions, about 2^-21; float32's would not.
template <class T>
DLOPS_DEVICE float sigmoid(float z) {
  if constexpr (sizeof(T) == 4)
    return __frcp_rn(1.f + expf(-z));
  else
    return __fdividef(1.f, 1.f + __expf(-z));
}
template <class T>
DLOPS_DEVICE float activate(float z, bool silu) {
  return silu ? z * sigmoid<T>(z) : z;
}
// dz = dy * f'(z): silu'(z) = s + z s (1 - s), s = sigmoid(z).
template <class T>
DLOPS_DEVICE float through(float dy, float z, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid<T>(z);
  return dy * (s + z * s * (1.f - s));
}

DLOPS_DEVICE float rstd_of(float m2, float count, float eps) { return 1.f / sqrtf(m2 / count + eps); }

// One channel of one sample: z = (x - mean) a + b, with k = weight (1 + scale), a = rstd k, b = bias (1 + scale) + shift.
// x - mean first: a mean that is large beside the deviation costs no digits.
struct Affine {
  float mean, a, b;
  DLOPS_DEVICE float z(float x) const { return (x - mean) * a + b; }
};
template <class T, class P>
DLOPS_DEVICE Affine affine_of(const P& p, int64_t sample, int64_t ch, float mean, float rstd) {
  const Param<T> weight{p.weight, p.param_dtype}, bias{p.bias, p.param_dtype};
  const Param<T> scale{p.scale, p.param_dtype}, shift{p.shift, p.param_dtype};
  const float gain = 1.f + scale.at(sample * p.c + ch, 0.f);
  return {mean, rstd * weight.at(ch, 1.f) * gain, bias.at(ch, 0.f) * gain + shift.at(sample * p.c + ch, 0.f)};
}
template <class T, class P>
DLOPS_DEVICE Affine affine_of(const P& p, int64_t sample, int64_t ch) {
  const int64_t group = sample * p.groups + ch / (p.c / p.groups);
  return affine_of<T>(p, sample, ch, p.mean[group], p.rstd[group]);
}

// ---- how large groups are cut. From the shape of one sample alone ----

constexpr int64_t kMostPieces = 512;     // of channels_last
constexpr int64_t kMostRowPieces = 256;  // of the rows behind a weight gradient

// NCHW forward: pieces of a group's elements; at most 1024 of them.
constexpr int64_t kGroupPiece = 8192;
inline int64_t group_piece(int64_t size) {
  const int64_t even = ceil_div(ceil_div(size, 1024), kGroupPiece) * kGroupPiece;
  return even > kGroupPiece ? even : kGroupPiece;
}
// NCHW backward: pieces of one plane, a warp each; at most 256.
constexpr int64_t kPlanePiece = 4096;
inline int64_t plane_piece(int64_t hw) {
  const int64_t even = ceil_div(ceil_div(hw, 256), kPlanePiece) * kPlanePiece;
  return even > kPlanePiece ? even : kPlanePiece;
}

// A block on channels_last, or on the columns of [rows, d]: x threads take a chunk of columns each, y threads share the
// rows of a piece.
struct ColumnTile {
  int x, y;
  int64_t tiles;  // column tiles
  int64_t piece;  // rows
  int64_t pieces;
};
inline ColumnTile column_tile(int64_t rows, int64_t columns, int vec, int64_t most_pieces) {
  const int64_t chunks = ceil_div(columns, vec);
  ColumnTile t{};
  for (t.x = 1; t.x < 32 && t.x < chunks; t.x *= 2) {
  }
  t.y = kThreads / t.x;
  t.tiles = ceil_div(chunks, t.x);
  t.piece = ceil_div(rows, most_pieces);
  if (t.piece < 16 * t.y) t.piece = 16 * t.y;  // 16 rows per thread pay for the reduction
  t.pieces = ceil_div(rows, t.piece);
  return t;
}

// Which part of it a block has: task = (sample * pieces + piece) * tiles + tile.
struct ColumnTask {
  int64_t sample, piece;
  int64_t column;      // this thread's first
  int64_t begin, end;  // rows of the piece; this thread has begin + threadIdx.y, then every blockDim.y-th
};
DLOPS_DEVICE ColumnTask column_task(const ColumnTile& t, int64_t task, int64_t rows, int vec) {
  ColumnTask k;
  k.column = (task % t.tiles * t.x + threadIdx.x) * vec;
  k.piece = task / t.tiles % t.pieces;
  k.sample = task / t.tiles / t.pieces;
  k.begin = k.piece * t.piece;
  k.end = k.begin + t.piece < rows ? k.begin + t.piece : rows;
  return k;
}
inline dim3 task_grid(int64_t tasks) { return dim3(block_count(tasks)); }

constexpr int kTogether = 8;  // divides the y threads of every ColumnTile

// Adds up two sums per column over the block's y threads, in their order: write(column, a, b), column counted from the
// block's first, each by one thread. scratch: [2 V kThreads] in shared memory.
template <int V, class F>
DLOPS_DEVICE void add_columns(const float (&a)[V], const float (&b)[V], float* scratch, F write) {
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x),
            x = static_cast<int>(blockDim.x);
  __syncthreads();  // the last use of scratch is over
#pragma unroll
  for (int j = 0; j < V; j++) {
    scratch[j * kThreads + thread] = a[j];
    scratch[(V + j) * kThreads + thread] = b[j];
  }
  __syncthreads();
  for (int k = thread; k < x * V; k += kThreads) {  // k = j * x + threadIdx.x: neighbours read neighbours
    const float* from = scratch + k / x * kThreads + k % x;
    float sum_a = 0, sum_b = 0;
    for (int first = 0; first < static_cast<int>(blockDim.y);
         first += kTogether) {  // sums of sums lose fewer digits
      float part_a = 0, part_b = 0;
      for (int y = first; y < first + kTogether; y++) {
        part_a += from[y * x];
        part_b += from[V * kThreads + y * x];
      }
      sum_a += part_a;
      sum_b += part_b;
    }
    write(k % x * V + k / x, sum_a, sum_b);
  }
}

// The sums over `rows` of the pairs in[r, c], to out_a[c] and out_b[c] (either may be null). y threads share the rows.
constexpr KernelInfo kColumnSums =
    DLOPS_NORM_KERNEL("row_norm_backward", "fused", "32 columns", "column_sums");
template <class Pair>
__global__ void __launch_bounds__(kThreads)
    column_sums(const Pair* in, int64_t rows, int64_t columns, float* out_a, float* out_b) {
  DLOPS_SHARED(float, scratch, [2 * kThreads]);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x; first < columns; first += step) {
    const int64_t c = first + threadIdx.x;
    float a[1] = {}, b[1] = {};
    for (int64_t r = threadIdx.y; r < rows && c < columns; r += blockDim.y) {
      const Pair pair = in[r * columns + c];
      a[0] += pair.x;
      b[0] += pair.y;
    }
    add_columns(a, b, scratch, [&](int column, float sum_a, float sum_b) {
      if (first + column >= columns) return;
      if (out_a) out_a[first + column] = sum_a;
      if (out_b) out_b[first + column] = sum_b;
    });
  }
}

}  // namespace dlops::norm
