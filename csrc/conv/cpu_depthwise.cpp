// Depthwise convolution: every filter sees one channel. Forward, and the data pass as the forward pass of the mirrored
// problem. Two engines: pixels in lanes (depthwise_rows.h) and channels in lanes (depthwise_lanes.h).
#include <type_traits>

#include "cpu_parts.h"
#include "depthwise_blocks.h"
#include "depthwise_lanes.h"
#include "depthwise_pixels.h"
#include "depthwise_rows.h"

namespace dlops {
namespace {

constexpr int64_t kPlaneFloats = 32768;  // 128 KiB
constexpr int64_t kChunkWork = 1 << 19;  // products

// NCHW: pixels in lanes if rows fill them and the kernel is not so large that two transposes cost nothing beside it.
bool pixels_in_lanes(const Depthwise& p) {
  if (p.channels_last) return false;
  if (p.filters * 2 < kLanes) return true;
  const int64_t width = p.axes[2].out, k = p.axes[2].taps;
  if (is_square(p.axes)) return width > (k == 3 ? kLanes : 28);
  return p.taps() <= 16 && width * 4 >= 3 * kLanes;
}

// One channel of one sample.
template <class T>
void plane_tile(const Depthwise& p, const T* x, const Tile& t, float bias, const T* residual, T* y,
                const float* weights, float* plane, float* sums) {
  const PlanePitch pitch = plane_pitch(t, p.axes[2].stride);
  fill_plane(x, p.axes, t, pitch, plane + pitch.start);
  const int64_t in = p.in_pixels(), rows = t.size[0] * t.size[1];
  convolve_plane(
      p.axes, t, plane + pitch.start, weights, sums, [&](int64_t z, int64_t line, const float* row) {
        const int64_t at =
            ((t.begin[0] + z) * p.axes[1].out + t.begin[1] + line) * p.axes[2].out + t.begin[2];
        // The next channel's image, while this one computes.
        prefetch(x + in + in * (z * t.size[1] + line) / rows, ceil_div(in, rows));
        prefetch(y + at + kRows * p.axes[2].out, t.size[2]);
        finish_run(row, t.size[2], bias, residual ? residual + at : nullptr, y + at, p.epilogue.activation);
      });
}

// Chunk: some channels of one sample, one tile of them.
template <class T>
void by_planes(const Depthwise& p) {
  const Tiling tiling = cut(p.axes, kPlaneFloats);
  const Tile first = tile(p.axes, tiling, 0);
  const int64_t work = first.size[0] * first.size[1] * first.size[2] * (p.taps() + 8);
  const int64_t together = larger(1, smaller(kChunkWork / work, p.filters));
  const int64_t groups = ceil_div(p.filters, together), tiles = tiling.tiles();
  const int64_t plane = round_up(plane_floats(p.axes, first), 16), sums = kRows * sums_row(first);
  const T *bias = static_cast<const T*>(p.epilogue.bias),
          *residual = static_cast<const T*>(p.epilogue.residual);
  parallel_for(p.threads, p.batch * groups * tiles, [&](int64_t i) {
    const int64_t n = i / (groups * tiles), begin = i / tiles % groups * together;
    const Tile t = tile(p.axes, tiling, i % tiles);
    cpu::Scratch scratch(static_cast<size_t>(plane + sums + p.taps()) * sizeof(float));
    float *image = scratch.floats(), *weights = image + plane + sums;
    for (int64_t f = begin; f < smaller(begin + together, p.filters); f++) {
      plane_weights(p.axes, p.weights + f / kLanes * p.taps() * kLanes + f % kLanes, weights);
      const int64_t from = (n * (p.filters / p.multiplier) + f / p.multiplier) * p.in_pixels();
      const int64_t to = (n * p.filters + f) * p.out_pixels();
      plane_tile(p, static_cast<const T*>(p.image) + from, t, bias ? load1(bias + f) : 0.f,
                 residual ? residual + to : nullptr, static_cast<T*>(p.result) + to, weights, image,
                 image + plane);
    }
  });
}

void run(const Depthwise& p, Dtype dtype) {
  if (fits_pixels(p, dtype)) return by_pixels(p);
  with_dtype(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (pixels_in_lanes(p))
      by_planes<T>(p);
    else
      by_blocks<T>(p, convolve_row);
  });
}

int64_t packed_size(const ConvProblem& p) { return round_up(p.filters, kLanes) * p.taps(); }

// [blocks of kLanes filters, taps, kLanes]; the data pass has them from the last to the first.
void pack(const ConvProblem& p, const void* w, float* packed, bool mirrored) {
  const int64_t taps = p.taps();
  with_dtype(p.dtype, [&](auto* t) {
    const auto* from = static_cast<decltype(t)>(const_cast<void*>(w));
    for (int64_t f = 0; f < round_up(p.filters, kLanes); f++)
      for (int64_t k = 0; k < taps; k++)
        packed[f / kLanes * taps * kLanes + k * kLanes + f % kLanes] =
            f < p.filters ? load1(from + f * taps + (mirrored ? taps - 1 - k : k)) : 0.f;
  });
}

}  // namespace

namespace DLOPS_PARTS {

const char* depthwise_forward_refuses(const ConvProblem& p) {
  if (p.group_channels() != 1) return "is for one channel per group";
  if (p.kernel[2] > kLargestWidth) return "is for kernels up to 63 wide";
  return nullptr;
}
int64_t depthwise_forward_packed_floats(const ConvProblem& p) { return packed_size(p); }
void depthwise_forward_pack(const ConvProblem& p, const void* w, float* packed) { pack(p, w, packed, false); }
void depthwise_forward(const ConvForwardParams& p) {
  Depthwise d = {p.batch,  p.filters,         p.group_filters(), {}, p.channels_last, p.threads, p.x,
                 p.packed, p.taps() * kLanes, p.epilogue,        p.y};
  forward_axes(p, d.axes);
  run(d, p.dtype);
}

const char* depthwise_data_refuses(const ConvProblem& p) {
  if (p.group_channels() != 1 || p.group_filters() != 1) return "is for one channel and one filter per group";
  if (p.kernel[2] > kLargestWidth) return "is for kernels up to 63 wide";
  return nullptr;
}
int64_t depthwise_data_packed_floats(const ConvProblem& p) { return packed_size(p); }
void depthwise_data_pack(const ConvProblem& p, const void* w, float* packed) { pack(p, w, packed, true); }
void depthwise_data(const ConvDataParams& p) {
  Depthwise d = {p.batch,  p.channels,        1,          {},  p.channels_last, p.threads, p.dy,
                 p.packed, p.taps() * kLanes, p.epilogue, p.dx};
  data_axes(p, d.axes);
  run(d, p.dtype);
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
