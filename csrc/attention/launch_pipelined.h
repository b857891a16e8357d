// The body of launch_pipelined_*.cu: one file per element type and range of head dimensions, so that they compile side by
// side.
#pragma once
#include "launch_parts.h"
#include "pipelined.cuh"

namespace dlops::attention {

template <class T, int D, bool extras>
int pipelined(const AttentionForwardParams& p, cudaStream_t stream) {
  using Tile = PipelinedTile<D, extras>;
  const Tasks tasks = tasks_of(p, Tile::kRows);
  const bool wide = wide_heads<T>(p.q, p.d) && wide_heads<T>(p.k, p.d) && wide_heads<T>(p.v, p.dv);
  return launch(attention_pipelined<T, D, extras>,
                {tasks.grid(), dim3(Tile::kThreads), Tile::kShared, stream}, p, tasks, wide,
                wide_heads<T>(p.out, p.dv));
}

// Head dimensions are padded, inside, to the next that there is a kernel for; with extras there are fewer.
template <class T>
int pipelined_narrow(const AttentionForwardParams& p, dlops_stream stream) {  // d, dv <= 96; with extras 128
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const int64_t d = greater(p.d, p.dv);
  if (has_extras(p)) return d <= 64 ? pipelined<T, 64, true>(p, s) : pipelined<T, 128, true>(p, s);
  if (d <= 32) return pipelined<T, 32, false>(p, s);
  if (d <= 64) return pipelined<T, 64, false>(p, s);
  return pipelined<T, 96, false>(p, s);
}
template <class T>
int pipelined_broad(const AttentionForwardParams& p, dlops_stream stream) {  // d, dv <= 256
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const int64_t d = greater(p.d, p.dv);
  if (has_extras(p)) return pipelined<T, 256, true>(p, s);
  if (d <= 128) return pipelined<T, 128, false>(p, s);
  if (d <= 192) return pipelined<T, 192, false>(p, s);
  return pipelined<T, 256, false>(p, s);
}

}  // namespace dlops::attention
