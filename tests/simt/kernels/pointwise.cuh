// Portable CUDA C++ without tensor cores: an LSTM cell, a softmax over rows, a scan of one block, a cooperative grid sum.
#pragma once
#include "../../../csrc/cuda/grid_sync.h"
#include "../../../csrc/cuda/launch.h"

namespace pointwise {

DLOPS_DEVICE float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// gates: [batch, 4, hidden] (i, f, g, o); c, h: [batch, hidden].
template <class T>
__global__ void __launch_bounds__(256)
    lstm_cell(const T* gates, const T* c_in, T* c_out, T* h_out, int batch, int hidden) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < batch * hidden; i += gridDim.x * blockDim.x) {
    const T* g = gates + (i / hidden) * 4 * hidden + i % hidden;
    const float in = sigmoid(float(g[0])), forget = sigmoid(float(g[hidden]));
    const float cell = tanhf(float(g[2 * hidden])), out = sigmoid(float(g[3 * hidden]));
    const float c = forget * float(c_in[i]) + in * cell;
    c_out[i] = T(c);
    h_out[i] = T(out * tanhf(c));
  }
}

struct Max {
  static DLOPS_DEVICE float of(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
  static DLOPS_DEVICE float of(float a, float b) { return a + b; }
};

// Every thread gets the block's result. part: [32].
template <class Op>
DLOPS_DEVICE float block_reduce(float v, float* part) {
  for (int lanes = 16; lanes; lanes /= 2) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  __syncthreads();  // the last use of part is over
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();  // part is written
  v = part[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; warp++) v = Op::of(v, part[warp]);
  return v;
}

// One block per row.
__global__ void softmax_rows(const float* x, float* y, int columns) {
  DLOPS_SHARED(float, part, [32]);
  const float* row = x + size_t(blockIdx.x) * columns;
  float most = -INFINITY, sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) most = fmaxf(most, row[i]);
  most = block_reduce<Max>(most, part);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(row[i] - most);
  sum = block_reduce<Sum>(sum, part);
  SIMT_TRACE("max", most);
  SIMT_TRACE("sum", sum);
  for (int i = threadIdx.x; i < columns; i += blockDim.x)
    y[size_t(blockIdx.x) * columns + i] = __expf(row[i] - most) / sum;
}

// Inclusive prefix sum of one block; each thread reads what lower ones wrote.
__global__ void scan_block(const float* x, float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  values[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // values are written
  float sum = 0;
  for (unsigned i = 0; i <= threadIdx.x; i++) sum += values[i];
  y[threadIdx.x] = sum;
}

// part: [blocks]. Launched cooperatively.
__global__ void grid_sum(const float* x, float* part, float* out, int n) {
  DLOPS_SHARED(float, scratch, [32]);
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_reduce<Sum>(sum, scratch);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
  dlops::ptx::grid_sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    float total = 0;
    for (unsigned b = 0; b < gridDim.x; b++) total += part[b];
    *out = total;
  }
}

}  // namespace pointwise
