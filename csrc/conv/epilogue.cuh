// What follows the sum, on the GPU: bias, residual, activation, the rounding to the result's type.
#pragma once
#include <cmath>

#include "../cuda/vec.h"
#include "params.h"

namespace dlops::conv {

DLOPS_DEVICE float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x <= 0.f ? 0.f : x;                       // NaN stays
    case Activation::silu: return x < -104.f ? 0.f : x / (1.f + expf(-x));  // 0 at -Inf
    case Activation::gelu: return 0.5f * x * (1.f + erff(0.70710678f * x));
    case Activation::tanh: return tanhf(x);
    case Activation::sigmoid: return 1.f / (1.f + expf(-x));
  }
  return x;
}
template <int N>
DLOPS_DEVICE void activate_all(float (&v)[N],
                               Activation activation) {  // one look at `activation` for relu and none
  if (activation == Activation::none) return;
  if (activation == Activation::relu) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate(v[i], Activation::relu);
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < N; turn++) {  // a rotation: one copy of the code, and v stays in registers
    const float first = activate(v[0], activation);
#pragma unroll
    for (int i = 0; i + 1 < N; i++) v[i] = v[i + 1];
    v[N - 1] = first;
  }
}

template <class T>
DLOPS_DEVICE float bias_of(const ConvEpilogue& e, int64_t channel) {
  return e.bias ? static_cast<float>(static_cast<const T*>(e.bias)[channel]) : 0.f;
}

// result[at] of channel `channel`, whose sum this is.
template <class T>
DLOPS_DEVICE void finish(const ConvEpilogue& e, void* result, int64_t at, int64_t channel, float sum) {
  sum += bias_of<T>(e, channel);
  if (e.residual) sum += static_cast<float>(static_cast<const T*>(e.residual)[at]);
  static_cast<T*>(result)[at] = static_cast<T>(activate(sum, e.activation));
}

// result[at ...] of kVec<T> elements of one channel, of which `left` exist; wide: 16 bytes at a time (vec.h).
template <class T>
DLOPS_DEVICE void finish_run(const ConvEpilogue& e, void* result, int64_t at, int64_t channel, int64_t left,
                             bool wide, float (&sum)[kVec<T>]) {
  const float bias = bias_of<T>(e, channel);
#pragma unroll
  for (int i = 0; i < kVec<T>; i++) sum[i] += bias;
  if (e.residual) {
    float more[kVec<T>];
    unpack<T>(load(static_cast<const T*>(e.residual) + at, left, wide), more);
#pragma unroll
    for (int i = 0; i < kVec<T>; i++) sum[i] += more[i];
  }
  activate_all(sum, e.activation);
  store(static_cast<T*>(result) + at, pack<T>(sum), left, wide);
}

// ---- four elements that lie together and are aligned as one: 16 or 8 bytes ----

template <class T>
DLOPS_DEVICE void load_quad(const T* p, float (&v)[4]) {
  if constexpr (sizeof(T) == 4) {
    unpack<T>(*reinterpret_cast<const uint4*>(p), v);
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(p);
    unpack_word<T>(words.x, v);
    unpack_word<T>(words.y, v + 2);
  }
}
template <class T>
DLOPS_DEVICE void store_quad(T* p, const float (&v)[4]) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<uint4*>(p) = pack<T>(v);
  else
    *reinterpret_cast<uint2*>(p) = make_uint2(pack_word<T>(v), pack_word<T>(v + 2));
}
template <class T, class... P>
bool quads_aligned(P... pointers) {  // null pointers do not object
  return ((reinterpret_cast<uintptr_t>(static_cast<const void*>(pointers)) % (4 * sizeof(T)) == 0) && ...);
}

// result[at + i step] of R times 4 channels, for i < left (channels_last).
template <class T, int R>
DLOPS_DEVICE void finish_quads(const ConvEpilogue& e, void* result, int64_t at, int64_t step, int64_t channel,
                               int left, float (&sum)[R][4]) {
  float bias[4];
#pragma unroll
  for (int j = 0; j < 4; j++) bias[j] = bias_of<T>(e, channel + j);
#pragma unroll
  for (int i = 0; i < R; i++) {
    float more[4] = {};
    if (e.residual && i < left) load_quad(static_cast<const T*>(e.residual) + at + i * step, more);
#pragma unroll
    for (int j = 0; j < 4; j++) sum[i][j] += bias[j] + more[j];
  }
  if (e.activation == Activation::relu) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sum[i][j] = activate(sum[i][j], Activation::relu);
  } else if (e.activation != Activation::none) {
#pragma unroll 1
    for (int turn = 0; turn < R; turn++) {  // a rotation, as above
      float first[4];
#pragma unroll
      for (int j = 0; j < 4; j++) first[j] = activate(sum[0][j], e.activation);
#pragma unroll
      for (int i = 0; i + 1 < R; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = sum[i + 1][j];
#pragma unroll
      for (int j = 0; j < 4; j++) sum[R - 1][j] = first[j];
    }
  }
#pragma unroll
  for (int i = 0; i < R; i++)
    if (i < left) store_quad(static_cast<T*>(result) + at + i * step, sum[i]);
}

}  // namespace dlops::conv
