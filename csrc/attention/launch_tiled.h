// The body of launch_tiled_*.cu: a file per element type, so that they compile side by side.
#pragma once
#include "launch_parts.h"
#include "tiled.cuh"

namespace dlops::attention {

template <class T, int D>
int tiled(const AttentionForwardParams& p, cudaStream_t stream) {
  using Tile = TiledTile<D>;
  const Tasks tasks = tasks_of(p, Tile::kRows);
  const bool wide = wide_heads<T>(p.q, p.d) && wide_heads<T>(p.k, p.d) && wide_heads<T>(p.v, p.dv);
  return launch(attention_tiled<T, D>, {tasks.grid(), dim3(Tile::kThreads), Tile::kShared, stream}, p, tasks,
                wide, wide_heads<T>(p.out, p.dv));
}

template <class T>
int tiled(const AttentionForwardParams& p, dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const int64_t d = greater(p.d, p.dv);
  return d <= 64 ? tiled<T, 64>(p, s) : d <= 128 ? tiled<T, 128>(p, s) : tiled<T, 256>(p, s);
}

}  // namespace dlops::attention
