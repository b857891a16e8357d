// Conformance of cuda/tma.h.
#pragma once
#include <type_traits>

#include "../cuda/tma.h"
#include "conformance.h"

namespace dlops::conformance {

constexpr int kTileBytes = 16 * 1024;

struct Position {
  int at[4];  // innermost first
};

template <int rank>
DLOPS_DEVICE void load(void* tile, const CUtensorMap* map, uint64_t* bar, const Position& p) {
  if constexpr (rank == 2) ptx::tma_load(tile, map, bar, {p.at[0], p.at[1]});
  if constexpr (rank == 3) ptx::tma_load(tile, map, bar, {p.at[0], p.at[1], p.at[2]});
  if constexpr (rank == 4) ptx::tma_load(tile, map, bar, {p.at[0], p.at[1], p.at[2], p.at[3]});
}
template <int rank>
DLOPS_DEVICE void store(const CUtensorMap* map, const void* tile, const Position& p) {
  if constexpr (rank == 2) ptx::tma_store(map, tile, {p.at[0], p.at[1]});
  if constexpr (rank == 3) ptx::tma_store(map, tile, {p.at[0], p.at[1], p.at[2]});
  if constexpr (rank == 4) ptx::tma_store(map, tile, {p.at[0], p.at[1], p.at[2], p.at[3]});
}

// The whole of shared memory as the load left it, sentinels where it wrote nothing.
template <int rank>
__global__ void load_kernel(uint32_t* out, const __grid_constant__ CUtensorMap map, Position p,
                            uint32_t bytes) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  DLOPS_SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) {
    ptx::tma_prefetch(&map);
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) tile[i] = 0x5a5a5a5au;
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    load<rank>(tile, &map, bar, p);
  }
  ptx::mbarrier_wait(bar, 0);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) out[i] = tile[i];
}

// One barrier, two phases: two boxes in the first, one in the second; the thread that waits is not the one that asks.
__global__ void load_phases_kernel(uint32_t* out, const __grid_constant__ CUtensorMap map, uint32_t bytes) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  DLOPS_SHARED(uint64_t, bar, [1]);
  const uint32_t words = bytes / 4;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 2);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  for (uint32_t phase = 0; phase < 2; phase++) {
    if (threadIdx.x == 0) {
      const int y = static_cast<int>(phase);
      ptx::mbarrier_arrive_expect_tx(bar, phase == 0 ? 2 * bytes : bytes);
      load<2>(tile, &map, bar, {{4, y}});
      if (phase == 0) load<2>(tile + words, &map, bar, {{8, 3}});
    } else if (threadIdx.x == 32) {
      ptx::mbarrier_arrive(bar);
    }
    ptx::mbarrier_wait(bar, phase);
    for (uint32_t i = threadIdx.x; i < 2 * words; i += blockDim.x) out[phase * 2 * words + i] = tile[i];
    ptx::fence_proxy_async();
    __syncthreads();
  }
}

// Two stores from one buffer, reused as soon as the first has been read, each a group of its own. Their boxes are apart:
// nothing orders two stores.
template <int rank>
__global__ void store_kernel(uint32_t* out, const __grid_constant__ CUtensorMap map, Position p, Position q) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  for (uint32_t turn = 0; turn < 2; turn++) {
    for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x)
      tile[i] = 0x20002u * i + 0x10000u + turn * 0x40004000u;
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      store<rank>(&map, tile, turn == 0 ? p : q);
      ptx::tma_store_commit();
      ptx::tma_store_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    ptx::tma_store_wait<1>();
    ptx::tma_store_wait<0>();
    out[0] = 1;
  }
}

// A tensor of `rank` dimensions and a box of it.
template <int rank>
struct Tensor {
  uint64_t sizes[rank], strides[rank - 1];  // elements, bytes
  uint32_t box[rank];
};
template <int rank>
uint32_t box_bytes(const Tensor<rank>& t, uint32_t elem_bytes) {
  for (const uint32_t side : t.box) elem_bytes *= side;
  return elem_bytes;
}

// Elements are their own position, from 1, as a float or as bits that are no NaN. Padding between rows is counted too and
// must never be seen.
template <class T>
using Element = std::conditional_t<sizeof(T) == 4, float, uint16_t>;
template <class T, int rank>
std::vector<Element<T>> positions(const Tensor<rank>& t) {
  std::vector<Element<T>> values(t.sizes[rank - 1] * t.strides[rank - 2] / sizeof(T));
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<Element<T>>(i + 1);
  return values;
}
template <class T, int rank>
CUtensorMap map_of(const void* data, const Tensor<rank>& t, Swizzle swizzle) {
  CUtensorMap map;
  check(tensor_map(&map, static_cast<const T*>(data), t.sizes, t.strides, t.box, swizzle));
  return map;
}

template <class T, int rank>
Bytes load_output(const Tensor<rank>& t, Swizzle swizzle, Position p) {
  Buffer<Element<T>> in(positions<T>(t));
  return output_of(load_kernel<rank>, {dim3(1), dim3(128), kTileBytes}, kTileBytes / 4,
                   map_of<T>(in.data(), t, swizzle), p, box_bytes(t, sizeof(T)));
}

template <class T, int rank>
Bytes store_output(const Tensor<rank>& t, Swizzle swizzle, Position p, Position q) {
  Buffer<Element<T>> to(positions<T>(t));
  output_of(store_kernel<rank>, {dim3(1), dim3(128), kTileBytes}, 1, map_of<T>(to.data(), t, swizzle), p, q);
  return to.bytes();
}

template <class T, int rank>
void add_copies(std::vector<Case>& cases, const std::string& name, const Tensor<rank>& t, Swizzle swizzle,
                Position p, Position q) {
  cases.push_back({"tma_load_" + name,
                   {"tma_load", "tma_prefetch", "mbarrier_arrive_expect_tx", "fence_proxy_async"},
                   90,
                   [=] { return load_output<T>(t, swizzle, p); }});
  cases.push_back(
      {"tma_store_" + name,
       {"tma_store", "tma_store_commit", "tma_store_wait", "tma_store_wait_read", "fence_proxy_async"},
       90,
       [=] { return store_output<T>(t, swizzle, p, q); }});
}

Bytes load_phases_output() {
  const Tensor<2> t = {{24, 8}, {112}, {8, 4}};
  Buffer<float> in(positions<float>(t));
  const uint32_t bytes = box_bytes(t, 4);
  return output_of(load_phases_kernel, {dim3(1), dim3(64), 2 * bytes}, bytes,
                   map_of<float>(in.data(), t, Swizzle::none), bytes);
}

std::vector<Case> tensor_copy_cases() {
  using bf16 = __nv_bfloat16;
  std::vector<Case> cases;
  // [rows 20, columns 72], pitch 80 elements; boxes of 12 rows of one swizzle span.
  const auto matrix = [](uint32_t columns) { return Tensor<2>{{72, 20}, {160}, {columns, 12}}; };
  add_copies<bf16>(cases, "2d_none", matrix(40), Swizzle::none, {{8, 3}}, {{-5, 15}});
  add_copies<bf16>(cases, "2d_32b", matrix(16), Swizzle::b32, {{8, 3}}, {{64, -2}});
  add_copies<bf16>(cases, "2d_64b", matrix(32), Swizzle::b64, {{8, 3}}, {{60, 9}});
  add_copies<bf16>(cases, "2d_128b", matrix(64), Swizzle::b128, {{0, 5}}, {{16, 17}});
  add_copies<__half>(cases, "2d_128b_narrow", matrix(40), Swizzle::b128, {{8, 1}}, {{48, 12}});
  // Boxes over an edge: before the first and behind the last, in each dimension.
  add_copies<bf16>(cases, "2d_before", matrix(64), Swizzle::b128, {{-24, -7}}, {{-64, 0}});
  add_copies<bf16>(cases, "2d_behind", matrix(64), Swizzle::b128, {{56, 14}}, {{72, 20}});
  add_copies<float>(cases, "2d_float", Tensor<2>{{30, 9}, {128}, {20, 6}}, Swizzle::none, {{16, -2}},
                    {{1, 5}});
  const Tensor<3> cube = {{40, 7, 5}, {96, 768}, {32, 4, 3}};
  add_copies<bf16>(cases, "3d", cube, Swizzle::b64, {{4, 2, 1}}, {{20, 5, 4}});
  add_copies<bf16>(cases, "3d_before", cube, Swizzle::b64, {{-8, -1, -2}}, {{30, -3, 4}});
  const Tensor<4> four = {{24, 5, 4, 3}, {48, 256, 1152}, {16, 3, 2, 2}};
  add_copies<bf16>(cases, "4d", four, Swizzle::b32, {{8, 1, 1, 0}}, {{0, 2, 2, 2}});
  add_copies<bf16>(cases, "4d_edges", four, Swizzle::b32, {{12, -1, 3, 2}}, {{-4, 3, -1, -1}});
  cases.push_back({"tma_load_phases",
                   {"tma_load", "mbarrier_arrive_expect_tx", "mbarrier_arrive", "mbarrier_wait"},
                   90,
                   load_phases_output});
  return cases;
}

}  // namespace dlops::conformance
