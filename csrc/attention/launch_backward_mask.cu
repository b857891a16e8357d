#include "launch_backward_fp32.h"
#include "mask_gradient.cuh"

namespace dlops::attention {

int backward_mask_gradient(const AttentionBackwardParams& p, const BackwardRows& rows, dlops_stream stream) {
  const MaskOut& m = p.dmask;
  MaskPlan plan{
      rows, m.batch ? p.batch : 1, m.head ? p.heads : 1, m.row ? p.q_len : 1, m.key ? p.k_len : 1, 0,
      0,    wide_inputs(p)};
  plan.row_tiles = ceil_div(plan.q_len, fp32::kTile);
  plan.key_tiles = ceil_div(plan.k_len, fp32::kTile);
  const int64_t tasks = plan.batch * plan.heads * plan.row_tiles * plan.key_tiles;
  if (tasks == 0) return cudaSuccess;
  return launch(
      attention_mask_gradient<fp32::kThreads>,
      {task_grid(tasks), dim3(fp32::kThreads), fp32::kSharedBytes, static_cast<cudaStream_t>(stream)}, p,
      plan);
}

}  // namespace dlops::attention
