// 1x1 kernels on channels-first images, where they lie: lanes are pixels, rows of a register tile are filters.
//
//   result[f, pixel] = epilogue( sum_c w[f, c] source[c, pixel] )
//
// A panel of pixels [channels, some vectors] is brought together once, in float32, and serves all filters.
#pragma once
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "direct_weights.h"

namespace dlops {
namespace {

struct Pointwise {
  int64_t batch, channels, filters, pixels;
  int threads;
};

template <class T>
struct PointwiseTensors {
  const T* source;
  const float* weights;  // as pack_weights leaves them: [block of filters][channels][filters of the block]
  const T *bias, *residual;
  T* result;
  Activation activation;
};

constexpr int64_t kPanelDepth = 256;  // channels that are summed apart

// Pixels [first, first + count) of every channel to [channels, lanes]; absent pixels are zeros.
template <class T>
void fill_panel(const T* source, int64_t channels, int64_t pixels, int64_t first, int64_t count,
                int64_t lanes, float* panel) {
  for (int64_t c = 0; c < channels; c++, panel += lanes)
    for (int64_t i = 0; i < lanes; i += kLanes) {
      const int64_t rest = count - i;
      const T* from = source + c * pixels + first + i;
      store(panel + i, rest >= kLanes ? load(from) : load_part(from, static_cast<int>(greater(rest, 0))));
    }
}

// A row of one filter: sums to the result.
template <class T>
DLOPS_INLINE void finish_pixels(const PointwiseTensors<T>& t, const float* sums, float bias, int64_t at,
                                int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(lesser(kLanes, count - i));
    Vec v = load(sums + i) + set1(bias);
    if (t.residual) v = v + (n == kLanes ? load(t.residual + at + i) : load_part(t.residual + at + i, n));
    v = activate(v, t.activation);
    n == kLanes ? store(t.result + at + i, v) : store_part(t.result + at + i, v, n);
  }
}

// NR vectors of pixels, and the blocks of filters [begin, end).
template <class T, int NR>
void pointwise_panel(const Pointwise& p, const PointwiseTensors<T>& t, int64_t sample, int64_t first,
                     int64_t count, const float* panel, int64_t begin, int64_t end) {
  constexpr int64_t kWide = NR * kLanes;
  const FilterBlocks blocks(p.filters);
  float sums[kTileVectors * kLanes * kWide];  // [filters of a block, pixels]
  for (int64_t b = begin; b < end; b++) {
    const int64_t filter = blocks.begin(b) * kLanes, row = blocks.size(b) * kLanes;
    const int64_t filters = lesser(row, p.filters - filter);
    for (int64_t c = 0; c < p.channels; c += kPanelDepth) {
      const int64_t depth = lesser(kPanelDepth, p.channels - c);
      const float *w = t.weights + filter * p.channels + c * row, *x = panel + c * kWide;
      if (c == 0)
        multiply<NR, Into::overwrite, false>(filters, depth, w, row, x, kWide, sums, kWide);
      else
        multiply<NR, Into::add, false>(filters, depth, w, row, x, kWide, sums, kWide);
    }
    for (int64_t f = 0; f < filters; f++)
      finish_pixels(t, sums + f * kWide, t.bias ? load1(t.bias + filter + f) : 0.f,
                    (sample * p.filters + filter + f) * p.pixels + first, count);
  }
}

template <class T>
void pointwise_task(const Pointwise& p, const PointwiseTensors<T>& t, int64_t sample, int64_t first,
                    int64_t count, int64_t begin, int64_t end) {
  const int64_t vectors = ceil_div(count, kLanes);
  cpu::Scratch panel(static_cast<size_t>(p.channels * vectors * kLanes) * sizeof(float));
  fill_panel(t.source + sample * p.channels * p.pixels, p.channels, p.pixels, first, count, vectors * kLanes,
             panel.floats());
  auto run = [&]<int NR>() {
    pointwise_panel<T, NR>(p, t, sample, first, count, panel.floats(), begin, end);
  };
  if (vectors == 1) return run.template operator()<1>();
  if (vectors == 2) return run.template operator()<2>();
  if (vectors == 3) return run.template operator()<3>();
  if constexpr (kTileVectors == 4) run.template operator()<4>();
}

// Whether most lanes of an image's last vector of pixels would be at work.
inline bool fills_lanes(int64_t pixels) { return pixels * 100 >= ceil_div(pixels, kLanes) * kLanes * 85; }

// Tasks: panels of up to kTileVectors vectors of pixels, and where these are few, some of the blocks of filters.
template <class T>
void pointwise(const Pointwise& p, const PointwiseTensors<T>& t) {
  const int64_t vectors = ceil_div(p.pixels, kLanes), panels = ceil_div(vectors, kTileVectors);
  const int64_t blocks = FilterBlocks(p.filters).count,
                splits = lesser(blocks, ceil_div(16, panels * p.batch));
  parallel_for(p.threads, p.batch * panels * splits, [&](int64_t task) {
    const int64_t split = task % splits, panel = task / splits % panels, sample = task / splits / panels;
    const int64_t first = panel * vectors / panels * kLanes;
    const int64_t end = lesser(p.pixels, (panel + 1) * vectors / panels * kLanes);
    pointwise_task(p, t, sample, first, end - first, split * blocks / splits, (split + 1) * blocks / splits);
  });
}

}  // namespace
}  // namespace dlops
