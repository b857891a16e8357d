#include "implicit_weight.cuh"
#include "launch_implicit_types.h"

namespace dlops::conv {
namespace implicit {
namespace {

// Small results take small tiles: the padding of a tile costs as much as the rest of it.
int tile_of(const ConvProblem& p) { return p.group_filters() <= 64 ? 64 : 128; }

// As many parts as make 528 blocks: two waves of an H100's 132 multiprocessors with two blocks each. None is shorter than 8
// steps of K. The device has no say: the same shape has the same sums everywhere.
WeightPlan plan_of(const ConvProblem& p) {
  WeightPlan plan{};
  const int64_t tile = tile_of(p), pixels = p.batch * p.out_pixels();
  plan.chunks = static_cast<int>(ceil_div(p.group_channels(), 8));
  plan.x_sample = p.in_pixels() * p.channels;
  plan.columns = p.taps() * plan.chunks * 8;
  plan.row_tiles = ceil_div(p.group_filters(), tile);
  plan.column_tiles = ceil_div(plan.columns, tile);
  int64_t parts = 528 / (plan.row_tiles * plan.column_tiles * p.groups);
  if (parts > pixels / (8 * kDepth)) parts = pixels / (8 * kDepth);
  // Sums of more pixels would lose digits in the accumulators.
  if (parts < ceil_div(pixels, int64_t{16384})) parts = ceil_div(pixels, int64_t{16384});
  plan.pixels_per_part = ceil_div(ceil_div(pixels, parts), kDepth) * kDepth;
  plan.parts = ceil_div(pixels, plan.pixels_per_part);
  return plan;
}

template <class T, int M>
cudaError_t multiply_parts(const ConvWeightParams& p, const WeightPlan& plan, cudaStream_t stream) {
  const dim3 grid = grid_of(plan.row_tiles * plan.column_tiles * p.groups * plan.parts);
  return launch(conv_implicit_weight<T, M>, {grid, dim3(kThreads), Tile<M, M>::kShared, stream}, p, plan);
}

template <class T>
int weight(const ConvWeightParams& p, cudaStream_t stream) {
  WeightPlan plan = plan_of(p);
  plan.wide_x = wide_rows<T>(p.group_channels(), p.x);
  plan.wide_dy = wide_rows<T>(p.group_filters(), p.dy);
  const cudaError_t error =
      tile_of(p) == 64 ? multiply_parts<T, 64>(p, plan, stream) : multiply_parts<T, 128>(p, plan, stream);
  if (error != cudaSuccess) return error;
  const unsigned blocks = block_count(ceil_div(p.filters * plan.columns, 32));
  return launch(conv_implicit_weight_sum<T>, {dim3(blocks), dim3(32, kSumLanes), 0, stream}, p, plan);
}

}  // namespace
}  // namespace implicit

const char* implicit_gemm_weight_refuses(const ConvProblem& p) {
  return p.padding_mode == PaddingMode::zeros ? implicit::refuses(p) : "is for padding mode zeros";
}

int64_t implicit_gemm_weight_workspace(const ConvProblem& p) {
  const implicit::WeightPlan plan = implicit::plan_of(p);
  return plan.parts * p.filters * plan.columns;
}

int implicit_gemm_weight(const ConvWeightParams& p, dlops_stream stream) {
  return implicit::with_half(p.dtype, [&](auto* t) {
    return implicit::weight<std::remove_pointer_t<decltype(t)>>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops::conv
