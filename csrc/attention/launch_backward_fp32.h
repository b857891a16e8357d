// The body of launch_backward_fp32_*.cu.
#pragma once
#include "backward_fp32.cuh"
#include "launch_backward.h"

namespace dlops::attention {

inline bool wide_inputs(const AttentionBackwardParams& p) {
  return with_dtype(p.dtype, [&](auto* t) -> int {
    using T = std::remove_pointer_t<decltype(t)>;
    return wide_heads<T>(p.q, p.d) && wide_heads<T>(p.k, p.d) && wide_heads<T>(p.v, p.dv) &&
           wide_heads<T>(p.dout, p.dv);
  });
}

template <int kGroups, Own own>
int backward_fp32_pass(const AttentionBackwardParams& p, const BackwardRows& rows, cudaStream_t stream) {
  const int64_t tiles = ceil_div(own == Own::rows ? p.q_len : p.k_len, fp32::kTile);
  const int64_t tasks = p.batch * (own == Own::rows ? p.heads : p.kv_heads) * tiles;
  if (tasks == 0) return cudaSuccess;
  return launch(attention_backward_fp32<kGroups, own>,
                {task_grid(tasks), dim3(fp32::kThreads), fp32::kSharedBytes, stream}, p,
                fp32::Plan{rows, tiles, tasks, wide_inputs(p)});
}

template <Own own>
int backward_fp32(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const int64_t d = greater(p.d, p.dv);
  return d <= 64    ? backward_fp32_pass<1, own>(p, rows, s)
         : d <= 128 ? backward_fp32_pass<2, own>(p, rows, s)
                    : backward_fp32_pass<4, own>(p, rows, s);
}

}  // namespace dlops::attention
