// The backward's passes on the fp32 cores: for float32, and for GPUs older than sm_80. The structure of backward_mma.cuh (a
// block owns 64 rows or keys and goes over tiles of 64 of the other side), with products as an SGEMM makes them: 256 threads,
// 4 x 4 results each, operands in shared memory 32 columns of q . k (or 64 of the gradients) at a time; what lies between
// the products is done in shared memory, element by element. Head dimensions up to 256, all extras and all types in one
// kernel: the type is looked at where elements are read.
#pragma once
#include "backward.cuh"

namespace dlops::attention::fp32 {

constexpr int kThreads = 256, kTile = 64, kDepth = 32;
constexpr int kStride =
    kTile + 4;  // of shared memory's rows: float4 aligned, neighbouring rows in different banks
constexpr int kSquare = kTile * kStride;
constexpr int kSharedBytes = 3 * kSquare * 4;

// A tile's rows in memory: row 0, their distance, how many there are.
struct Side {
  const void* data;
  int64_t stride;
  int count, width;
};

struct Reader {
  Dtype dtype;
  bool wide;  // rows are aligned and a multiple of 16 bytes

  // Elements c .. c + 3 of row r; 0 past the end.
  DLOPS_DEVICE float4 quad(const Side& x, int r, int c) const {
    if (r >= x.count || c >= x.width) return make_float4(0, 0, 0, 0);
    switch (dtype) {
      case Dtype::f32: return typed<float>(x, r, c);
      case Dtype::f16: return typed<__half>(x, r, c);
      default: return typed<__nv_bfloat16>(x, r, c);
    }
  }

 private:
  template <class T>
  DLOPS_DEVICE float4 typed(const Side& x, int r, int c) const {
    const T* from = static_cast<const T*>(x.data) + r * x.stride + c;
    float v[4];
    if (wide && sizeof(T) == 4) {
      return *reinterpret_cast<const float4*>(from);
    } else if (wide) {
      const uint2 w = *reinterpret_cast<const uint2*>(from);
      unpack_word<T>(w.x, v);
      unpack_word<T>(w.y, v + kPerWord<T>);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = c + j < x.width ? static_cast<float>(from[j]) : 0.f;
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

DLOPS_DEVICE int thread_y() { return static_cast<int>(threadIdx.x) / 16; }
DLOPS_DEVICE int thread_x() { return static_cast<int>(threadIdx.x) % 16; }

// Where the thread's results lie in a tile of shared memory [other side][owned side]: rows 4 y + a of the owned side, rows
// x + 16 b of the other.
DLOPS_DEVICE int result_at(int a, int b) { return (thread_x() + 16 * b) * kStride + 4 * thread_y() + a; }

// to = own . other, tiles of rows. work: [kSquare].
DLOPS_DEVICE void dot_products(float* to, const Side& own, const Side& other, const Reader& reader,
                               float* work) {
  float *left = work, *right = work + kDepth * kStride;
  float s[4][4] = {};
  const auto load = [&](const Side& x, float* columns, int c0) {
#pragma unroll
    for (int turn = 0; turn < kTile * kDepth / 4 / kThreads; turn++) {
      const int i = turn * kThreads + static_cast<int>(threadIdx.x), r = i % kTile, c = i / kTile * 4;
      const float4 v = reader.quad(x, r, c0 + c);
      columns[c * kStride + r] = v.x;
      columns[(c + 1) * kStride + r] = v.y;
      columns[(c + 2) * kStride + r] = v.z;
      columns[(c + 3) * kStride + r] = v.w;
    }
  };
  for (int c0 = 0; c0 < own.width; c0 += kDepth) {
    __syncthreads();  // the last use of work is over
    load(own, left, c0);
    load(other, right, c0);
    __syncthreads();  // the columns are there
#pragma unroll 4
    for (int k = 0; k < kDepth; k++) {
      const float4 l = *reinterpret_cast<const float4*>(left + k * kStride + 4 * thread_y());
      const float row[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const float column = right[k * kStride + thread_x() + 16 * b];
#pragma unroll
        for (int a = 0; a < 4; a++) s[a][b] = fmaf(row[a], column, s[a][b]);
      }
    }
  }
#pragma unroll
  for (int b = 0; b < 4; b++)
    *reinterpret_cast<float4*>(to + result_at(0, b)) = make_float4(s[0][b], s[1][b], s[2][b], s[3][b]);
}

// acc[g][a][b] += sum over the other side of weights times its column 64 g + 4 x + b, for row 4 y + a of the owned side.
template <int kGroups>
DLOPS_DEVICE void accumulate(float (&acc)[kGroups][4][4], const float* weights, const Side& other,
                             const Reader& reader, float* work) {
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    if (g * kTile >= other.width) break;
    __syncthreads();  // the last use of work is over, and the weights are there
#pragma unroll
    for (int turn = 0; turn < kTile * kTile / 4 / kThreads; turn++) {
      const int i = turn * kThreads + static_cast<int>(threadIdx.x), r = i / (kTile / 4),
                c = i % (kTile / 4) * 4;
      *reinterpret_cast<float4*>(work + r * kStride + c) = reader.quad(other, r, g * kTile + c);
    }
    __syncthreads();  // the columns are there
#pragma unroll 4
    for (int k = 0; k < kTile; k++) {
      const float4 l = *reinterpret_cast<const float4*>(weights + k * kStride + 4 * thread_y());
      const float4 r = *reinterpret_cast<const float4*>(work + k * kStride + 4 * thread_x());
      const float row[4] = {l.x, l.y, l.z, l.w}, column[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
      for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++) acc[g][a][b] = fmaf(row[a], column[b], acc[g][a][b]);
    }
  }
}

struct Plan {
  BackwardRows rows;
  int64_t tiles, tasks;
  bool wide;  // q, k, v, dout may be read 16 bytes at a time
};

// width: of the gradient. Rows from `real` on are 0.
template <int kGroups>
DLOPS_DEVICE void write(const HeadsOut& x, void* row0, Dtype dtype, const float (&acc)[kGroups][4][4],
                        float scale, int64_t rows, int64_t real, int width) {
#pragma unroll
  for (int a = 0; a < 4; a++) {
    const int r = 4 * thread_y() + a;
    if (r >= rows) break;
#pragma unroll
    for (int g = 0; g < kGroups; g++)
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const int c = g * kTile + 4 * thread_x() + b;
        if (c >= width) continue;
        const float v = r < real ? acc[g][a][b] * scale : 0.f;
        const int64_t at = r * x.row + c;
        switch (dtype) {
          case Dtype::f32: static_cast<float*>(row0)[at] = v; break;
          case Dtype::f16: static_cast<__half*>(row0)[at] = static_cast<__half>(v); break;
          case Dtype::bf16: static_cast<__nv_bfloat16*>(row0)[at] = static_cast<__nv_bfloat16>(v); break;
        }
      }
  }
}

// Row i of q, out or their gradients, key j of k, v or theirs, of any type. H: HeadsIn or HeadsOut.
template <class H>
DLOPS_DEVICE auto row_at(const H& x, Dtype dtype, const Head& h, int64_t i) -> decltype(H::data) {
  const int64_t at = h.batch * x.batch + h.head * x.head + (h.sequence.q_begin + i) * x.row;
  return const_cast<char*>(static_cast<const char*>(x.data)) + at * bytes_of(dtype);
}
template <class H>
DLOPS_DEVICE auto key_at(const H& x, Dtype dtype, const Head& h, int64_t j) -> decltype(H::data) {
  const int64_t at = h.batch * x.batch + h.kv_head * x.head + (h.sequence.k_begin + j) * x.row;
  return const_cast<char*>(static_cast<const char*>(x.data)) + at * bytes_of(dtype);
}

// Rows (q, dO) or keys (k, v) from `first` on.
struct Sides { Side first, second; };
DLOPS_DEVICE Sides rows_from(const AttentionBackwardParams& p, const Head& h, int first) {
  const int left = static_cast<int>(h.sequence.q_len) - first;
  return {{row_at(p.q, p.dtype, h, first), p.q.row, left, static_cast<int>(p.d)},
          {row_at(p.dout, p.dtype, h, first), p.dout.row, left, static_cast<int>(p.dv)}};
}
DLOPS_DEVICE Sides keys_from(const AttentionBackwardParams& p, const Head& h, int first) {
  const int left = static_cast<int>(h.sequence.k_len) - first;
  return {{key_at(p.k, p.dtype, h, first), p.k.row, left, static_cast<int>(p.d)},
          {key_at(p.v, p.dtype, h, first), p.v.row, left, static_cast<int>(p.dv)}};
}

}  // namespace dlops::attention::fp32

namespace dlops::attention {

constexpr KernelInfo kBackwardFp32 =
    DLOPS_ATTENTION_BACKWARD("fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16", "64 rows x 64 keys",
                             "attention_backward_fp32", fp32::kSharedBytes);
template <int kGroups, Own own>
__global__ void __launch_bounds__(fp32::kThreads)
    attention_backward_fp32(const __grid_constant__ AttentionBackwardParams p,
                            const __grid_constant__ fp32::Plan plan) {
  using namespace fp32;
  DLOPS_DYNAMIC_SHARED(float, shared, 16);
  float *s = shared, *dp = shared + kSquare, *work = shared + 2 * kSquare;
  const Reader reader{p.dtype, plan.wide};
  const int group = own == Own::rows ? 1 : static_cast<int>(p.heads / p.kv_heads);
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const OwnedTile t = owned_tile<own>(p, task, plan.tiles, kTile);
    Head head = head_of(p, t.batch, t.head * group);
    const int first = static_cast<int>(t.first);
    const int64_t written = written_length<own>(p, head.sequence) - first;
    if (written <= 0) continue;
    const int64_t real = owned_length<own>(head.sequence) - first;
    const Sight sight = sight_of<own>(p, head.sequence, first, kTile);
    float acc0[kGroups][4][4] = {}, acc1[own == Own::keys ? kGroups : 1][4][4] = {};
    for (int g = 0; g < group; g++) {
      if (g > 0) head = head_of(p, t.batch, t.head * group + g);
      const Dropout dropout(p, head);
      for (int c0 = sight.any_begin / kTile * kTile; c0 < sight.any_end; c0 += kTile) {
        const Sides mine = own == Own::rows ? rows_from(p, head, first) : keys_from(p, head, first);
        const Sides other = own == Own::rows ? keys_from(p, head, c0) : rows_from(p, head, c0);
        dot_products(s, mine.first, other.first, reader, work);
        dot_products(dp, mine.second, other.second, reader, work);
        for (int a = 0; a < 4; a++) {
          const int64_t o = first + 4 * thread_y() + a;
          const Range seen = o - first < real ? seen_by<own>(p, head.sequence, o) : Range{0, 0};
#pragma unroll 1
          for (int b = 0; b < 4; b++) {  // the thread's own results: nobody else touched them
            const int64_t c = c0 + thread_x() + 16 * b;
            const int at = result_at(a, b);
            Gradient gradient{};
            if (seen.begin <= c && c < seen.end) {
              const int64_t i = own == Own::rows ? o : c, j = own == Own::rows ? c : o;
              gradient = gradient_of(p, head, dropout, plan.rows, s[at], dp[at], static_cast<int>(i),
                                     static_cast<int>(j));
            }
            s[at] = gradient.dropped;
            dp[at] = gradient.through;
          }
        }
        if constexpr (own == Own::keys) accumulate<kGroups>(acc1, s, other.second, reader, work);
        accumulate<kGroups>(acc0, dp, other.first, reader, work);
      }
    }
    if constexpr (own == Own::rows) {
      write<kGroups>(p.dq, row_at(p.dq, p.dtype, head, first), p.dtype, acc0, p.scale, written, real,
                     static_cast<int>(p.d));
    } else {
      if (p.dk.data)
        write<kGroups>(p.dk, key_at(p.dk, p.dtype, head, first), p.dtype, acc0, p.scale, written, real,
                       static_cast<int>(p.d));
      if (p.dv_.data)
        write<kGroups>(p.dv_, key_at(p.dv_, p.dtype, head, first), p.dtype, acc1, 1.f, written, real,
                       static_cast<int>(p.dv));
    }
  }
}

}  // namespace dlops::attention
