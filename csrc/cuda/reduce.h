// Reductions over a warp and a block, in a fixed order: the same bits on every run.
//
// What is reduced is a small struct A of floats with  merge(const A&)  and  A down(int lanes) const  (the value of the
// lane that much higher); all zeros must be its identity. Shuffles order no memory; the block version has barriers.
#pragma once
#include <cstdint>

#include "launch.h"

namespace dlops {

constexpr uint32_t kWarp = 0xffffffffu;

template <int N>
struct Sums {
  float v[N];

  DLOPS_DEVICE void merge(const Sums& o) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] += o.v[i];
  }
  DLOPS_DEVICE Sums down(int lanes) const {
    Sums s;
#pragma unroll
    for (int i = 0; i < N; i++) s.v[i] = __shfl_down_sync(kWarp, v[i], lanes);
    return s;
  }
  DLOPS_DEVICE Sums from_first() const {
    Sums s;
#pragma unroll
    for (int i = 0; i < N; i++) s.v[i] = __shfl_sync(kWarp, v[i], 0);
    return s;
  }
};

// Mean and sum of squared deviations of `count` values. Merging follows Chan, Golub and LeVeque 1979, which does not
// cancel where the mean is large beside the deviation.
template <class R>
struct Moments {
  R count, mean, m2;

  DLOPS_DEVICE void merge(const Moments& o) {
    if (o.count == 0) return;
    const R total = count + o.count, share = o.count / total, delta = o.mean - mean;
    mean += delta * share;
    m2 += o.m2 + delta * delta * count * share;
    count = total;
  }
  // The first n of V values. Two passes in registers.
  template <int V>
  DLOPS_DEVICE void add(const float (&v)[V], int64_t n) {
    const R k = n < V ? static_cast<R>(n) : static_cast<R>(V);
    R sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < V; j++) sum += j < n ? static_cast<R>(v[j]) : R(0);
    const R average = n < V ? sum / k : sum * (R(1) / V);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const R delta = j < n ? static_cast<R>(v[j]) - average : R(0);
      squares += delta * delta;
    }
    merge({k, average, squares});
  }
  DLOPS_DEVICE Moments down(int lanes) const {
    return {__shfl_down_sync(kWarp, count, lanes), __shfl_down_sync(kWarp, mean, lanes),
            __shfl_down_sync(kWarp, m2, lanes)};
  }
  DLOPS_DEVICE Moments from_first() const {
    return {__shfl_sync(kWarp, count, 0), __shfl_sync(kWarp, mean, 0), __shfl_sync(kWarp, m2, 0)};
  }
};

// Every lane gets the warp's result.
template <class A>
DLOPS_DEVICE A warp_reduce(A a) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) a.merge(a.down(d));
  return a.from_first();
}

// Every thread of a one-dimensional block of whole warps gets the block's result. scratch: [32] in shared memory.
template <class A>
DLOPS_DEVICE A block_reduce(A a, A* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  a = warp_reduce(a);
  __syncthreads();  // the last use of scratch is over
  if (lane == 0) scratch[threadIdx.x / 32] = a;
  __syncthreads();
  a = lane < warps ? scratch[lane] : A{};
  return warp_reduce(a);  // each warp for itself: no third barrier
}

}  // namespace dlops
