#include "launch_parts.h"
#include "split.cuh"

namespace dlops {

using namespace attention;

int64_t attention_split_workspace(const AttentionForwardParams& p) {
  return p.batch * p.heads * p.q_len * ceil_div(p.k_len, kChunkKeys) * (p.dv + 2);
}

template <class T, int Rows>
static int chunks(const AttentionForwardParams& p, cudaStream_t stream) {
  const int64_t group = p.heads / p.kv_heads;
  const SplitTasks tasks{ceil_div(p.k_len, kChunkKeys), ceil_div(p.q_len * group, Rows), p.kv_heads, group};
  const bool wide = wide_heads<T>(p.k, p.d) && wide_heads<T>(p.v, p.dv);
  const int64_t blocks = tasks.chunks * tasks.row_tiles * p.batch * p.kv_heads;
  if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
  return launch(attention_split<T, Rows>,
                {dim3(static_cast<unsigned>(blocks)), dim3(kSplitThreads), 0, stream}, p, tasks, wide);
}

template <class T>
static int split(const AttentionForwardParams& p, cudaStream_t s) {
  const int64_t rows = p.q_len * (p.heads / p.kv_heads);
  int error = cudaSuccess;
  if (p.k_len > 0)
    error = rows == 1 ? chunks<T, 1>(p, s) : rows <= 4 ? chunks<T, 4>(p, s) : chunks<T, 8>(p, s);
  if (error != cudaSuccess) return error;
  const dim3 warps(32, kSplitThreads / 32);
  return launch(attention_split_merge<T>,
                {dim3(block_count(ceil_div(p.batch * p.heads * p.q_len, warps.y))), warps, 0, s}, p,
                ceil_div(p.k_len, kChunkKeys));
}

int attention_split_cuda(const AttentionForwardParams& p, dlops_stream stream) {
  if (!fits_int(p) || p.dropout_p > 0) return cudaErrorInvalidValue;
  return with_dtype(p.dtype, [&](auto* t) {
    return split<std::remove_pointer_t<decltype(t)>>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops
