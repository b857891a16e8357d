// Copies and mbarriers in the simt runner against the PTX manual: cp.async, tensor copies, transaction counts.
#pragma once
#include "check.h"
#include "models.h"

namespace copy_checks {

using namespace dlops;

// ---- cp.async: 9.7.9.25.3.1. cp-size bytes are written, the first src-size of them from the source, the rest zeros ----

template <int bytes>
__global__ void cp_async_kernel(unsigned char* out, const unsigned char* in) {
  DLOPS_SHARED(uint4, tile, [32]);
  unsigned char* mine = reinterpret_cast<unsigned char*>(tile + threadIdx.x);
  for (int i = 0; i < 16; i++) mine[i] = 0xee;
  ptx::cp_async<bytes>(mine, in + threadIdx.x * bytes, threadIdx.x % 3 != 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  for (int i = 0; i < 16; i++) out[threadIdx.x * 16 + i] = mine[i];
}

template <int bytes>
void check_cp_async() {
  alignas(16) unsigned char in[32 * bytes];
  for (int i = 0; i < 32 * bytes; i++) in[i] = static_cast<unsigned char>(i % 199 + 1);
  std::vector<unsigned char> out(32 * 16);
  run(cp_async_kernel<bytes>, {dim3(1), dim3(32)}, out.data(), in);
  bool same = true;
  for (int t = 0; t < 32; t++)
    for (int i = 0; i < 16; i++)
      same &= out[t * 16 + i] == (i >= bytes ? 0xee : t % 3 == 0 ? 0 : in[t * bytes + i]);
  check(same, "cp.async of " + std::to_string(bytes) + " bytes, and zeros where the source is not valid");
}

// ---- tensor copies: 5.5.3, tiled mode; 5.5.7, swizzling; 9.7.9.25.5.2 ----

constexpr uint32_t kTileBytes = 32 * 1024;

struct Tensor {
  int rank;
  uint32_t elem_bytes;
  uint64_t sizes[4], strides[3];  // elements, bytes; innermost first
  uint32_t box[4];
  int span;  // bytes; 16: no swizzle
};

struct Start { int at[4]; };

template <int rank>
DLOPS_DEVICE void load(void* tile, const CUtensorMap* map, uint64_t* bar, const Start& s) {
  if constexpr (rank == 2) ptx::tma_load(tile, map, bar, {s.at[0], s.at[1]});
  if constexpr (rank == 3) ptx::tma_load(tile, map, bar, {s.at[0], s.at[1], s.at[2]});
  if constexpr (rank == 4) ptx::tma_load(tile, map, bar, {s.at[0], s.at[1], s.at[2], s.at[3]});
}
template <int rank>
DLOPS_DEVICE void store(const CUtensorMap* map, const void* tile, const Start& s) {
  if constexpr (rank == 2) ptx::tma_store(map, tile, {s.at[0], s.at[1]});
  if constexpr (rank == 3) ptx::tma_store(map, tile, {s.at[0], s.at[1], s.at[2]});
  if constexpr (rank == 4) ptx::tma_store(map, tile, {s.at[0], s.at[1], s.at[2], s.at[3]});
}

template <int rank>
__global__ void load_kernel(uint32_t* out, const __grid_constant__ CUtensorMap map, Start s, uint32_t bytes) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  DLOPS_SHARED(uint64_t, bar, [1]);
  for (uint32_t i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) tile[i] = 0xeeeeeeeeu;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    load<rank>(tile, &map, bar, s);
  }
  ptx::mbarrier_wait(bar, 0);
  for (uint32_t i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) out[i] = tile[i];
}

template <int rank>
__global__ void store_kernel(const __grid_constant__ CUtensorMap map, const uint32_t* image, Start s) {
  DLOPS_DYNAMIC_SHARED(uint32_t, tile, 1024);
  for (uint32_t i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) tile[i] = image[i];
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    store<rank>(&map, tile, s);
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
}

// Visits the box: f(byte offset within the dense box, byte offset in the tensor or -1 where it lies outside).
template <class F>
void each_element(const Tensor& t, const Start& s, F f) {
  uint32_t dense = 0;
  for (uint32_t i3 = 0; i3 < (t.rank > 3 ? t.box[3] : 1); i3++)
    for (uint32_t i2 = 0; i2 < (t.rank > 2 ? t.box[2] : 1); i2++)
      for (uint32_t i1 = 0; i1 < t.box[1]; i1++)
        for (uint32_t i0 = 0; i0 < t.box[0]; i0++, dense += t.elem_bytes) {
          const uint32_t i[4] = {i0, i1, i2, i3};
          int64_t offset = 0;
          bool inside = true;
          for (int d = 0; d < t.rank; d++) {
            const int64_t x = s.at[d] + static_cast<int64_t>(i[d]);
            inside &= 0 <= x && x < static_cast<int64_t>(t.sizes[d]);
            offset += x * static_cast<int64_t>(d == 0 ? t.elem_bytes : t.strides[d - 1]);
          }
          f(dense, inside ? offset : -1);
        }
}

template <class T, int rank>
CUtensorMap map_of(const Tensor& t, const void* data) {
  uint64_t sizes[rank], strides[rank - 1];
  uint32_t box[rank];
  for (int d = 0; d < rank; d++) {
    sizes[d] = t.sizes[d], box[d] = t.box[d];
    if (d > 0) strides[d - 1] = t.strides[d - 1];
  }
  const Swizzle s = t.span == 128  ? Swizzle::b128
                    : t.span == 64 ? Swizzle::b64
                    : t.span == 32 ? Swizzle::b32
                                   : Swizzle::none;
  CUtensorMap map;
  if (tensor_map(&map, static_cast<const T*>(data), sizes, strides, box, s) != cudaSuccess)
    throw std::runtime_error("a tensor map was refused");
  return map;
}

template <class T, int rank>
void check_box(const std::string& what, Tensor t, Start s) {
  t.rank = rank, t.elem_bytes = sizeof(T);
  const size_t bytes = t.sizes[rank - 1] * t.strides[rank - 2];
  std::vector<uint32_t> words(bytes / 4);  // 16-byte aligned by malloc
  for (size_t i = 0; i < words.size(); i++) words[i] = static_cast<uint32_t>(i * 2654435761u | 0x01010101u);
  unsigned char* tensor = reinterpret_cast<unsigned char*>(words.data());
  const CUtensorMap map = map_of<T, rank>(t, tensor);
  uint32_t box_bytes = sizeof(T);
  for (int d = 0; d < rank; d++) box_bytes *= t.box[d];

  std::vector<unsigned char> dense(kTileBytes, 0xee), expected(kTileBytes), got(kTileBytes);
  each_element(t, s, [&](uint32_t at, int64_t from) {
    for (uint32_t b = 0; b < sizeof(T); b++) dense[at + b] = from < 0 ? 0 : tensor[from + b];
  });
  for (uint32_t i = 0; i < kTileBytes; i++) expected[i] = dense[models::swizzle_source(t.span, i)];
  run(load_kernel<rank>, {dim3(1), dim3(64), kTileBytes}, reinterpret_cast<uint32_t*>(got.data()), map, s,
      box_bytes);
  check(got == expected, "tensor load, " + what);

  std::vector<unsigned char> image(kTileBytes), after(tensor, tensor + bytes);
  for (uint32_t i = 0; i < kTileBytes; i++) image[i] = static_cast<unsigned char>(i * 37 % 251);
  for (uint32_t i = 0; i < kTileBytes; i++) dense[models::swizzle_source(t.span, i)] = image[i];
  each_element(t, s, [&](uint32_t at, int64_t to) {
    if (to >= 0) std::memcpy(&after[to], &dense[at], sizeof(T));
  });
  run(store_kernel<rank>, {dim3(1), dim3(64), kTileBytes}, map,
      reinterpret_cast<const uint32_t*>(image.data()), s);
  check(std::memcmp(after.data(), tensor, bytes) == 0, "tensor store, " + what);
}

inline void check_boxes() {
  using bf16 = __nv_bfloat16;
  for (const int span : {16, 32, 64, 128}) {
    const std::string swizzle = span == 16 ? ", no swizzle" : ", " + std::to_string(span) + "-byte swizzle";
    const uint32_t columns = static_cast<uint32_t>(span == 16 ? 48 : span / 2);
    const Tensor matrix = {2, 2, {90, 30}, {192}, {columns, 20}, span};
    check_box<bf16, 2>("2D" + swizzle, matrix, {{8, 4}});
    check_box<bf16, 2>("2D over every edge" + swizzle, matrix, {{90 - static_cast<int>(columns) / 2, 17}});
    check_box<bf16, 2>("2D at negative coordinates" + swizzle, matrix, {{-9, -3}});
    const Tensor cube = {3, 2, {70, 9, 5}, {144, 1312}, {columns, 5, 3}, span};
    check_box<bf16, 3>("3D" + swizzle, cube, {{3, 2, 1}});
    check_box<bf16, 3>("3D over the edges" + swizzle, cube, {{40, -2, 3}});
    const Tensor four = {4, 2, {72, 6, 5, 4}, {144, 880, 4416}, {columns, 3, 2, 3}, span};
    check_box<bf16, 4>("4D" + swizzle, four, {{0, 1, 2, 1}});
    check_box<bf16, 4>("4D over the edges" + swizzle, four, {{50, 4, -1, 2}});
  }
  check_box<float, 2>("2D of float32", {2, 4, {50, 12}, {208}, {32, 7}, 128}, {{20, 7}});
  check_box<bf16, 2>("2D wholly outside", {2, 2, {64, 8}, {128}, {64, 8}, 128}, {{64, 8}});
}

// ---- the driver's refusals: cuda.h, cuTensorMapEncodeTiled ----

inline void check_refusals() {
  alignas(64) float data[64];
  CUtensorMap map;
  const auto refused = [&](const float* base, uint64_t columns, uint64_t pitch, uint32_t box_columns,
                           uint32_t box_rows, Swizzle s) {
    return tensor_map(&map, base, {columns, 8}, {pitch}, {box_columns, box_rows}, s) == cudaErrorInvalidValue;
  };
  check(!refused(data, 64, 256, 32, 8, Swizzle::b128), "a tensor map that the driver takes");
  check(refused(data + 1, 64, 256, 32, 8, Swizzle::b128), "refused: the address is no multiple of 16 bytes");
  check(refused(data, 64, 260, 32, 8, Swizzle::b128), "refused: the stride is no multiple of 16 bytes");
  check(refused(data, 64, uint64_t(1) << 40, 32, 8, Swizzle::b128), "refused: the stride is 2^40 bytes");
  check(refused(data, 0, 256, 32, 8, Swizzle::b128), "refused: a size of 0");
  check(refused(data, (uint64_t(1) << 32) + 1, 256, 32, 8, Swizzle::b128), "refused: a size over 2^32");
  check(refused(data, 64, 256, 32, 257, Swizzle::b128), "refused: a box side over 256");
  check(refused(data, 64, 256, 32, 0, Swizzle::b128), "refused: a box side of 0");
  check(refused(data, 64, 256, 33, 8, Swizzle::none), "refused: box rows that are no multiple of 16 bytes");
  check(refused(data, 64, 256, 36, 8, Swizzle::b128), "refused: box rows longer than the swizzle's span");
  check(refused(data, 64, 256, 20, 8, Swizzle::b64), "refused: box rows longer than 64 bytes");
}

// ---- mbarrier: 9.7.13.15. A phase ends when the pending arrivals and the tx-count are both zero ----

struct Step {
  uint32_t expect;  // bytes told
  int boxes;        // of 256 bytes each
};

// One phase; wait_for: the parity that thread 32 waits for, then out[0] = 1.
__global__ void tx_kernel(int* out, const __grid_constant__ CUtensorMap map, Step step, uint32_t wait_for) {
  DLOPS_DYNAMIC_SHARED(unsigned char, tile, 1024);
  DLOPS_SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, step.expect);
    for (int i = 0; i < step.boxes; i++) ptx::tma_load(tile + 256 * i, &map, bar, {0, 4 * i});
  }
  ptx::mbarrier_wait(bar, wait_for);
  if (threadIdx.x == 32) {
    out[0] = 1;
    for (int i = 0; i < step.boxes; i++) out[1 + i] = reinterpret_cast<int*>(tile)[64 * i];
  }
}

// Arrivals alone, over three phases of `count` arrivals by as many threads.
__global__ void phases_kernel(int* out, int count) {
  DLOPS_SHARED(uint64_t, bar, [1]);
  DLOPS_SHARED(int, value, [1]);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, static_cast<uint32_t>(count));
    ptx::fence_mbarrier_init();
    value[0] = -1;
  }
  __syncthreads();
  ptx::mbarrier_wait(bar, 1);  // of a fresh barrier, the phase before is over
  for (int phase = 0; phase < 3; phase++) {
    if (threadIdx.x == 1) value[0] = phase;
    ptx::mbarrier_arrive(bar);
    ptx::mbarrier_wait(bar, static_cast<uint32_t>(phase % 2));
    out[phase * count + static_cast<int>(threadIdx.x)] = value[0];
    __syncthreads();
  }
}

inline void check_mbarriers() {
  std::vector<float> data(16 * 32);
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<float>(i);
  CUtensorMap map;  // boxes of [4, 16] float32
  tensor_map(&map, data.data(), {16, 32}, {64}, {16, 4}, Swizzle::none);
  const Launch l = {dim3(1), dim3(64), 1024};
  int out[5] = {};
  run(tx_kernel, l, out, map, Step{1024, 4}, 0);
  bool whole = out[0] == 1;
  for (int i = 0; i < 4; i++) whole &= simt::bits<int>(data[64 * i]) == out[1 + i];
  check(whole, "mbarrier: a phase of four copies ends with the last of them");
  check_finding("mbarrier: more bytes than were told", "more than", tx_kernel, l, out, map, Step{128, 1}, 0);
  check_finding("mbarrier: fewer bytes than were told end in a deadlock that says how many are missing",
                "512 bytes", tx_kernel, l, out, map, Step{1024, 2}, 0);
  std::vector<int> seen(3 * 64, -2);
  run(phases_kernel, {dim3(1), dim3(64)}, seen.data(), 64);
  bool right = true;
  for (int i = 0; i < 3 * 64; i++) right &= seen[i] == i / 64;
  check(right, "mbarrier: phases of 64 arrivals, parity by parity");
}

inline void all() {
  check_cp_async<4>();
  check_cp_async<8>();
  check_cp_async<16>();
  check_boxes();
  check_refusals();
  check_mbarriers();
}

}  // namespace copy_checks
