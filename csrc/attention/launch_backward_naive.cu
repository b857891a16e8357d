#include "launch_backward.h"
#include "naive_backward.cuh"

namespace dlops::attention {

int backward_naive_passes(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const auto grid = [](int64_t warps) { return task_grid(ceil_div(warps, kNaiveWarps)); };
  const dim3 block(32, kNaiveWarps);
  return with_dtype(p.dtype, [&](auto* t) -> int {
    using T = std::remove_pointer_t<decltype(t)>;
    int error = cudaSuccess;
    if (p.dq.data)
      error =
          launch(attention_backward_naive_rows<T>, {grid(p.batch * p.heads * p.q_len), block, 0, s}, p, rows);
    if (error == cudaSuccess && (p.dk.data || p.dv_.data) && p.k_len > 0)
      error = launch(attention_backward_naive_keys<T>, {grid(p.batch * p.kv_heads * p.k_len), block, 0, s}, p,
                     rows);
    return error;
  });
}

int backward_careful(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  if (p.mask.kind == MaskKind::none && p.window_left < 0 && p.window_right < 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(attention_backward_careful<std::remove_pointer_t<decltype(t)>>,
                  {task_grid(ceil_div(p.batch * p.heads * p.q_len, kNaiveWarps)), dim3(32, kNaiveWarps), 0,
                   static_cast<cudaStream_t>(stream)},
                  p, rows);
  });
}

}  // namespace dlops::attention
