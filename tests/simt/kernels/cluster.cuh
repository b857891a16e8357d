// A cluster's blocks read each other's shared memory.
#pragma once
#include "../../../csrc/cuda/ptx.h"

namespace cluster {

// y[i] = x[i ^ 64]: each block of 64 threads takes its neighbour's values.
__global__ void __launch_bounds__(64) swap_blocks(const float* x, float* y) {
  DLOPS_DYNAMIC_SHARED(float, values, 16);
  const int i = blockIdx.x * 64 + threadIdx.x;
  values[threadIdx.x] = x[i];
  dlops::ptx::cluster_sync();  // the neighbour's values are written
  y[i] = dlops::ptx::cluster_map(values, dlops::ptx::cluster_rank() ^ 1)[threadIdx.x];
  dlops::ptx::cluster_sync();  // nobody leaves while others read
}

inline cudaError_t launch(const float* x, float* y, int n) {
  return dlops::launch(swap_blocks, {dim3(n / 64), dim3(64), 256, nullptr, dim3(2)}, x, y);
}

}  // namespace cluster
