#include "../cuda/vec.h"
#include "launch_parts.h"
#include "naive.cuh"

namespace dlops {

using namespace attention;

int64_t attention_naive_workspace(const AttentionForwardParams& p) {
  return p.batch * p.heads * p.q_len * p.k_len;
}

template <class T>
static int naive(const AttentionForwardParams& p, cudaStream_t s) {
  const int64_t rows = p.batch * p.heads * p.q_len;
  const dim3 warps(32, kNaiveThreads / 32), threads(kNaiveThreads);
  int error = cudaSuccess;
  if (p.k_len > 0) error = launch(attention_naive_scores<T>, {flat_grid(rows * p.k_len), threads, 0, s}, p);
  if (error == cudaSuccess)
    error = launch(attention_naive_softmax<T>, {dim3(block_count(ceil_div(rows, warps.y))), warps, 0, s}, p);
  if (error == cudaSuccess)
    error = launch(attention_naive_values<T>, {flat_grid(rows * p.dv), threads, 0, s}, p);
  return error;
}

int attention_naive_cuda(const AttentionForwardParams& p, dlops_stream stream) {
  if (!fits_int(p)) return cudaErrorInvalidValue;
  return with_dtype(p.dtype, [&](auto* t) {
    return naive<std::remove_pointer_t<decltype(t)>>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace dlops
