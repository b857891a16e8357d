// 16 bytes of float, half or bfloat16 at a time, and what they hold as float32.
//
// A chunk is kVec<T> consecutive elements on their way between memory and registers. It stays packed in a uint4 until
// it is needed, so that a thread can have several in flight. Where 16-byte access is impossible (an unaligned tensor,
// rows that are not whole chunks) the same functions move element by element.
//
// Memory is read and written through types of equal size: g++ needs -fno-strict-aliasing here, nvcc assumes it.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../dtype.h"
#include "ptx.h"

namespace dlops {

template <class T>
constexpr int kVec = 16 / static_cast<int>(sizeof(T));

// Host: f(static_cast<T*>(nullptr)) for the type that t names.
template <class F>
inline int with_dtype(Dtype t, F f) {
  switch (t) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

// Host: may rows of `row` elements each be moved 16 bytes at a time? Null pointers do not object.
template <class T, class... P>
inline bool wide_rows(int64_t row, P... pointers) {
  return row % kVec<T> == 0 &&
         ((reinterpret_cast<uintptr_t>(static_cast<const void*>(pointers)) % 16 == 0) && ...);
}

// Words i of a chunk are elements i (float), or 2i in the low half and 2i + 1 in the high half.
template <class T>
DLOPS_DEVICE void unpack_word(uint32_t w, float* v) {
  if constexpr (std::is_same_v<T, float>) {
    v[0] = __uint_as_float(w);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    v[0] = __uint_as_float(w << 16);
    v[1] = __uint_as_float(w & 0xffff0000u);
  } else {
    const __half2 pair = *reinterpret_cast<const __half2*>(&w);
    v[0] = static_cast<float>(pair.x);
    v[1] = static_cast<float>(pair.y);
  }
}
// Rounds to nearest even.
template <class T>
DLOPS_DEVICE uint32_t pack_word(const float* v) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(v[0]);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v[0], v[1]);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(v[0], v[1]);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}
DLOPS_DEVICE uint4 words(const uint32_t (&w)[4]) { return make_uint4(w[0], w[1], w[2], w[3]); }

template <class T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

template <class T>
DLOPS_DEVICE void unpack(const uint4& chunk, float (&v)[kVec<T>]) {
  const uint32_t w[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; i++) unpack_word<T>(w[i], v + i * kPerWord<T>);
}
template <class T>
DLOPS_DEVICE uint4 pack(const float (&v)[kVec<T>]) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = pack_word<T>(v + i * kPerWord<T>);
  return words(w);
}

// Elements 4q .. 4q+3 of a chunk: fewer registers than all of it.
template <class T>
constexpr int kQuads = kVec<T> / 4;
template <class T>
DLOPS_DEVICE void unpack_quad(const uint4& chunk, int q, float (&v)[4]) {
  const uint32_t w[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4 / kPerWord<T>; i++) unpack_word<T>(w[4 / kPerWord<T> * q + i], v + i * kPerWord<T>);
}
template <class T>
DLOPS_DEVICE void pack_quad(const float (&v)[4], int q, uint32_t (&w)[4]) {
#pragma unroll
  for (int i = 0; i < 4 / kPerWord<T>; i++) w[4 / kPerWord<T> * q + i] = pack_word<T>(v + i * kPerWord<T>);
}

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

// Element j of a chunk sits in bits bit_of<T>(j) .. of word word_of<T>(j).
template <class T>
constexpr DLOPS_DEVICE int word_of(int j) {
  return j * static_cast<int>(sizeof(T)) / 4;
}
template <class T>
constexpr DLOPS_DEVICE int bit_of(int j) {
  return j * static_cast<int>(sizeof(T)) * 8 % 32;
}

// The chunk at p, of which `left` elements exist (more than a chunk is fine, none too); the rest reads as 0.
// wide: p is 16-byte aligned and rows are whole chunks.
template <class T>
DLOPS_DEVICE uint4 load(const T* p, int64_t left, bool wide) {
  if (wide) return left > 0 ? ptx::load_once(reinterpret_cast<const uint4*>(p)) : make_uint4(0, 0, 0, 0);
  uint32_t w[4] = {0, 0, 0, 0};
  const BitsOf<T>* bits = reinterpret_cast<const BitsOf<T>*>(p);
#pragma unroll
  for (int j = 0; j < kVec<T>; j++)
    if (j < left) w[word_of<T>(j)] |= static_cast<uint32_t>(bits[j]) << bit_of<T>(j);
  return words(w);
}

template <class T>
DLOPS_DEVICE void store(T* p, const uint4& chunk, int64_t left, bool wide) {
  if (wide) {
    if (left > 0) *reinterpret_cast<uint4*>(p) = chunk;
    return;
  }
  const uint32_t w[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  BitsOf<T>* bits = reinterpret_cast<BitsOf<T>*>(p);
#pragma unroll
  for (int j = 0; j < kVec<T>; j++)
    if (j < left) bits[j] = static_cast<BitsOf<T>>(w[word_of<T>(j)] >> bit_of<T>(j));
}

}  // namespace dlops
