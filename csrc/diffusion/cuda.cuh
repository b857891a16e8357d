// Diffusion sampling on the GPU: one pass over the latent per solver step. See README.md of this folder.
//
// The arithmetic and its order are those of cpu.cpp, in correctly rounded operations that nothing may contract, so
// every device computes the same bits.
#pragma once
#include "../catalogue.h"
#include "../cuda/rows.h"
#include "../cuda/vec.h"
#include "../philox.h"
#include "params.h"

namespace dlops::diffusion {

DLOPS_DEVICE int64_t row_of(const RowChoice& c, int64_t sample) {
  const int64_t row = c.rows ? c.rows[sample * c.row_stride] : c.row;
  return row < 0 ? 0 : row >= c.table_rows ? c.table_rows - 1 : row;
}

// The normals of elements 4 group .. 4 group + 3.
DLOPS_DEVICE void normals(int64_t seed, int32_t step, int64_t group, float (&n)[4]) {
  philox::normal4<philox::Scalar>(static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), step,
                                  static_cast<uint64_t>(seed), n);
}
// One element's: three of the four are thrown away.
DLOPS_DEVICE float normal1(int64_t seed, int32_t step, int64_t element) {
  float n[4];
  normals(seed, step, element / 4, n);
  const int j = static_cast<int>(element % 4);
  return j < 2 ? (j == 0 ? n[0] : n[1]) : (j == 2 ? n[2] : n[3]);  // no run-time index: n stays in registers
}

// ---- one solver step ----

// The tensors a step reads. Any but the first two may be absent.
enum Stream : int { kSample, kModel, kUncond, kHistory, kNoise = kHistory + 3, kStreams };

template <class T>
DLOPS_DEVICE const T* stream_of(const StepParams& p, int s) {
  const void* all[kStreams] = {p.sample,     p.model,      p.uncond, p.history[0],
                               p.history[1], p.history[2], p.noise};
  return static_cast<const T*>(all[s]);
}

// What one sample's elements share.
struct StepRow {
  float k[kStepColumns];
  float factor, threshold;  // on m; dynamic, 0: none
  int32_t step;             // keys the noise
  bool noisy;
};

DLOPS_DEVICE StepRow read_row(const StepParams& p, int64_t sample) {
  StepRow r;
  const int64_t row = row_of(p.rows, sample);
#pragma unroll
  for (int i = 0; i < kStepColumns; i++) r.k[i] = __ldg(p.rows.table + row * kStepColumns + i);
  r.factor = p.scale ? __ldg(p.scale + 2 * sample) : 1.f;
  r.threshold = p.scale ? __ldg(p.scale + 2 * sample + 1) : 0.f;
  r.step = static_cast<int32_t>(row);
  r.noisy = (p.noise || p.seeds) && (r.k[kD] != 0.f || r.k[kPn] != 0.f);
  return r;
}

DLOPS_DEVICE float guide(float guidance, float cond, float uncond) {
  return __fmaf_rn(guidance, __fsub_rn(cond, uncond), uncond);
}
DLOPS_DEVICE float denoised(const float* k, float x, float m) {
  return __fmaf_rn(k[kPm], m, __fmul_rn(k[kPx], x));
}

// The step on V elements. get(stream, v) fetches a stream's V values; it is called when they are needed, and once.
// Streams from `streams` on are known to be absent (noise by seeds is always possible).
template <int V, int streams, class Get>
DLOPS_DEVICE void step_values(const StepParams& p, const StepRow& r, Get get, float (&out)[V],
                              float (&x0)[V]) {
  float x[V], m[V], z[V], other[V];
  get(kSample, x);
  get(kModel, m);
  if (p.uncond) {
    get(kUncond, other);
#pragma unroll
    for (int j = 0; j < V; j++) m[j] = guide(p.guidance, m[j], other[j]);
  }
  if (r.noisy) get(kNoise, z);
  const float limit = r.threshold != 0.f ? r.threshold : r.k[kClip];
#pragma unroll
  for (int j = 0; j < V; j++) {
    if (p.scale) m[j] = __fmul_rn(m[j], r.factor);
    float v = denoised(r.k, x[j], m[j]);
    if (r.noisy && r.k[kPn] != 0.f) v = __fmaf_rn(r.k[kPn], z[j], v);
    v = v < -limit ? -limit : v > limit ? limit : v;  // compares, not min/max: NaN passes through
    x0[j] = r.threshold != 0.f ? __fdiv_rn(v, limit) : v;
    out[j] = __fmul_rn(r.k[kA], x[j]);
    // A term whose coefficient is 0 is left out: its tensor may hold NaN.
    if (r.k[kB] != 0.f) out[j] = __fmaf_rn(r.k[kB], m[j], out[j]);
    if (r.k[kC] != 0.f) out[j] = __fmaf_rn(r.k[kC], x0[j], out[j]);
  }
#pragma unroll
  for (int h = 0; h < 3; h++) {
    if (streams <= kHistory + h || !p.history[h] || r.k[kH1 + h] == 0.f) continue;
    get(kHistory + h, other);
#pragma unroll
    for (int j = 0; j < V; j++) out[j] = __fmaf_rn(r.k[kH1 + h], other[j], out[j]);
  }
  if (r.noisy) {
#pragma unroll
    for (int j = 0; j < V; j++) out[j] = __fmaf_rn(r.k[kD], z[j], out[j]);
  }
}

// The formula, one element per thread: coefficients read, and four normals drawn, for every element.
constexpr KernelInfo kStepNaive =
    DLOPS_CUDA_KERNEL("diffusion_step", "diffusion", "naive", "sm_75 sm_80 sm_90a", "f32 f16 bf16",
                      "128 elements", "step_naive", 0);
template <class T>
__global__ void __launch_bounds__(kRowThreads) step_naive(const StepParams p) {
  for (int64_t i = flat_thread(); i < p.samples * p.elements; i += flat_threads()) {
    const int64_t sample = i / p.elements;
    const StepRow r = read_row(p, sample);
    float out[1], x0[1];
    step_values<1, kStreams>(
        p, r,
        [&](int stream, float (&v)[1]) {
          if (stream == kNoise && !p.noise)
            v[0] = normal1(p.seeds[sample], r.step, i % p.elements);
          else
            v[0] = static_cast<float>(stream_of<T>(p, stream)[i]);
        },
        out, x0);
    static_cast<T*>(p.prev)[i] = static_cast<T>(out[0]);
    if (p.x0) static_cast<T*>(p.x0)[i] = static_cast<T>(x0[0]);
  }
}

// 16 bytes of every tensor at a time. All loads of a turn are issued before the first is used: what is in flight must
// cover the memory's latency, about 40 KB per SM on Hopper. Registers limit that, so the step of one-step solvers
// (streams = kHistory: no history, no noise tensor) is an instance of its own that takes two chunks per turn.
// The row is read once per thread, and one Philox call feeds four elements.
constexpr KernelInfo kStep =
    DLOPS_CUDA_KERNEL("diffusion_step", "diffusion", "fused", "sm_75 sm_80 sm_90a", "f32 f16 bf16",
                      "128 threads x 1-2 x 16 bytes", "step_fused", 0);
template <int streams>
constexpr int kStepUnroll = streams == kStreams ? 1 : 2;

template <class T, int streams, bool wide>
__global__ void __launch_bounds__(kRowThreads, 4) step_fused(const StepParams p) {
  constexpr int V = kVec<T>, kUnroll = kStepUnroll<streams>;
  const int64_t chunks = (p.elements + V - 1) / V;
  for (int64_t n = first_row(); n < p.samples; n += row_step()) {
    const StepRow r = read_row(p, n);
    const int64_t base = n * p.elements, seed = p.seeds ? p.seeds[n] : 0;
    for (int64_t first = first_chunk(kUnroll); first < chunks; first += chunk_step(kUnroll)) {
      uint4 held[kUnroll][streams];
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        const int64_t i = (first + u * blockDim.x) * V;
#pragma unroll
        for (int s = 0; s < streams; s++)
          if (stream_of<T>(p, s)) held[u][s] = load(stream_of<T>(p, s) + base + i, p.elements - i, wide);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        const int64_t chunk = first + u * blockDim.x, i = chunk * V;
        uint32_t prev[4], x0[4];
#pragma unroll
        for (int q = 0; q < kQuads<T>; q++) {
          float out[4], out_x0[4];
          step_values<4, streams>(
              p, r,
              [&](int stream, float (&v)[4]) {
                if (stream >= streams || (stream == kNoise && !p.noise))
                  normals(seed, r.step, chunk * kQuads<T> + q, v);
                else
                  unpack_quad<T>(held[u][stream], q, v);
              },
              out, out_x0);
          pack_quad<T>(out, q, prev);
          pack_quad<T>(out_x0, q, x0);
        }
        store(static_cast<T*>(p.prev) + base + i, words(prev), p.elements - i, wide);
        if (p.x0) store(static_cast<T*>(p.x0) + base + i, words(x0), p.elements - i, wide);
      }
    }
  }
}

// ---- launching, for launch*.cu ----

// Where nothing depends on the sample, [N, M] is one long row: no short rows, no unaligned ones.
template <class P>
inline void flatten(P& p, const RowChoice& rows, bool per_sample) {
  if (per_sample || (rows.rows && rows.row_stride != 0)) return;
  p.elements *= p.samples;
  p.samples = 1;
}

template <class T, class P, class Kernel>
inline int launch_rows(const P& p, int unroll, Kernel kernel, void* stream) {
  const RowGrid g = row_grid(p.samples, ceil_div(p.elements, kVec<T>), unroll);
  return launch(kernel, {g.grid, g.block, 0, static_cast<cudaStream_t>(stream)}, p);
}

// pick(static_cast<T*>(nullptr)) names the instance.
template <class P, class Pick>
inline int launch_flat(const P& p, void* stream, Pick pick) {
  if (p.samples * p.elements == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(
        pick(t), {flat_grid(p.samples * p.elements), dim3(kRowThreads), 0, static_cast<cudaStream_t>(stream)},
        p);
  });
}

}  // namespace dlops::diffusion
