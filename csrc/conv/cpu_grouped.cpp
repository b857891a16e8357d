// Convolution of small groups: 2, 4 or 8 channels and as many filters in each. Channels are lanes (grouped.h); the data pass is
// the forward pass of the mirrored problem.
#include <type_traits>

#include "cpu_parts.h"
#include "depthwise_blocks.h"
#include "grouped.h"

namespace dlops {
namespace {

template <int kGroup>
ConvolveRow of_group(int64_t width, int64_t stride) {
  if (kGroup > kLanes) return nullptr;
  constexpr int g = kGroup > kLanes ? 1 : kGroup;
  if (width == 3) return stride == 1 ? convolve_groups<g, 3, 1> : convolve_groups<g, 3, 2>;
  return stride == 1 ? convolve_groups<g, 5, 1> : convolve_groups<g, 5, 2>;
}

void run(const Depthwise& p, int64_t group, Dtype dtype) {
  const int64_t width = p.axes[2].taps, stride = p.axes[2].stride;
  const ConvolveRow row = group == 2   ? of_group<2>(width, stride)
                          : group == 4 ? of_group<4>(width, stride)
                                       : of_group<8>(width, stride);
  with_dtype(dtype, [&](auto* t) { by_blocks<std::remove_pointer_t<decltype(t)>>(p, row); });
}

const char* refuses(const ConvProblem& p, bool mirrored) {
  const int64_t group = p.group_channels(), stride = mirrored ? 1 : p.stride[2];
  if (group != p.group_filters() || (group != 2 && group != 4 && group != 8))
    return "is for 2, 4 or 8 channels and filters per group";
  if (group > kLanes) return "is for groups of at most 4 channels on this CPU";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1) return "is for one and two dimensions";
  if (p.kernel[2] != 3 && p.kernel[2] != 5) return "is for kernels 3 or 5 wide";
  if (p.dilation[2] != 1 || stride > 2) return "is for stride 1 and 2 without dilation";
  return nullptr;
}

// [blocks of kLanes filters, height, width, channels of a group, kLanes]
int64_t packed_size(const ConvProblem& p) {
  return round_up(p.filters, kLanes) * p.taps() * p.group_channels();
}

// w is [filters, channels of a group, taps]. The data pass sums over the filters of a group instead, the taps from the last to
// the first.
void pack(const ConvProblem& p, const void* w, float* packed, bool mirrored) {
  const int64_t taps = p.taps(), group = p.group_channels();
  with_dtype(p.dtype, [&](auto* t) {
    const auto* from = static_cast<decltype(t)>(const_cast<void*>(w));
    for (int64_t f = 0; f < round_up(p.filters, kLanes); f++)
      for (int64_t k = 0; k < taps; k++)
        for (int64_t c = 0; c < group; c++) {
          const int64_t other = f / group * group + c;  // mirrored: lanes are channels, and c a filter
          const int64_t at =
              mirrored ? (other * group + f % group) * taps + taps - 1 - k : (f * group + c) * taps + k;
          float* to = packed + ((f / kLanes * taps + k) * group + c) * kLanes + f % kLanes;
          *to = f < p.filters ? load1(from + at) : 0.f;
        }
  });
}

Depthwise problem(const ConvProblem& p, const float* packed, const ConvEpilogue& epilogue) {
  Depthwise d = {};
  d.batch = p.batch;
  d.filters = p.filters;
  d.multiplier = 1;
  d.channels_last = p.channels_last;
  d.threads = p.threads;
  d.weights = packed;
  d.block_weights = p.taps() * p.group_channels() * kLanes;
  d.epilogue = epilogue;
  return d;
}

}  // namespace

namespace DLOPS_PARTS {

const char* grouped_forward_refuses(const ConvProblem& p) { return refuses(p, false); }
int64_t grouped_forward_packed_floats(const ConvProblem& p) { return packed_size(p); }
void grouped_forward_pack(const ConvProblem& p, const void* w, float* packed) { pack(p, w, packed, false); }
void grouped_forward(const ConvForwardParams& p) {
  Depthwise d = problem(p, p.packed, p.epilogue);
  d.image = p.x;
  d.result = p.y;
  forward_axes(p, d.axes);
  run(d, p.group_channels(), p.dtype);
}

const char* grouped_data_refuses(const ConvProblem& p) { return refuses(p, true); }
int64_t grouped_data_packed_floats(const ConvProblem& p) { return packed_size(p); }
void grouped_data_pack(const ConvProblem& p, const void* w, float* packed) { pack(p, w, packed, true); }
void grouped_data(const ConvDataParams& p) {
  Depthwise d = problem(p, p.packed, p.epilogue);
  d.image = p.dy;
  d.result = p.dx;
  data_axes(p, d.axes);
  run(d, p.group_channels(), p.dtype);
}

}  // namespace DLOPS_PARTS
}  // namespace dlops
