#include "group.cuh"
#include "launch_parts.h"

namespace dlops {

using namespace norm;

int64_t group_norm_workspace_cuda(const GroupNormParams& p) {
  if (p.n * p.c * p.hw == 0) return 0;
  return group_fits_block(p.c / p.groups, p.hw, p.channels_last, 16 / bytes_of(p.dtype))
             ? 0
             : group_norm_large_workspace(p);
}

int group_norm_naive_cuda(const GroupNormParams& p, dlops_stream stream) {
  if (p.n * p.c * p.hw == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    return launch(group_norm_naive<std::remove_pointer_t<decltype(t)>>,
                  {task_grid(p.n * p.groups), dim3(kThreads), 0, static_cast<cudaStream_t>(stream)}, p);
  });
}

template <class T>
static int one_block(const GroupNormParams& p, cudaStream_t stream) {
  const int64_t per = p.c / p.groups, size = per * p.hw;
  int threads = 32;  // 4 chunks per thread, then 8
  while (threads < kBlockThreads && threads * 4 * kVec<T> < size) threads *= 2;
  const bool wide = wide_rows<T>(p.channels_last ? per : size, p.x, p.y);
  return launch(group_norm_block<T>, {task_grid(p.n * p.groups), dim3(threads), 0, stream}, p, wide);
}

int group_norm_cuda(const GroupNormParams& p, dlops_stream stream) {
  if (p.n * p.c * p.hw == 0) return cudaSuccess;
  if (!group_fits_block(p.c / p.groups, p.hw, p.channels_last, 16 / bytes_of(p.dtype)))
    return group_norm_large_cuda(p, stream);
  return with_dtype(p.dtype, [&](auto* t) {
    return one_block<std::remove_pointer_t<decltype(t)>>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops
