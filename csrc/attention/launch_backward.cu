#include "launch_backward.h"
#include "launch_backward_fp32.h"
#include "launch_device.h"

namespace dlops {

using namespace attention;

// Whether dq may be summed by atomics: where nobody asked for the same bits, and the keys' pass runs anyway. The workspace
// has room for it on every device.
static bool may_use_atomics(const AttentionBackwardParams& p) {
  return !p.deterministic && p.dtype != Dtype::f32 && p.dq.data && (p.dk.data || p.dv_.data) &&
         !has_extras(p);
}

int64_t backward_workspace_cuda(const AttentionBackwardParams& p) {
  return backward_row_count(p) * (2 + (p.dsinks ? 1 : 0) + (may_use_atomics(p) ? p.d : 0));
}

static BackwardRows rows_of(const AttentionBackwardParams& p, bool atomics) {
  const int64_t n = backward_row_count(p);
  float* const at = p.workspace;
  return {at, at + n, p.dsinks ? at + 2 * n : nullptr, atomics ? at + (p.dsinks ? 3 : 2) * n : nullptr, n};
}

// What every rung does: the rows' numbers, and the gradients that need no pass over keys and rows of their own.
static int prepare(const AttentionBackwardParams& p, const BackwardRows& rows, cudaStream_t s) {
  int error = with_dtype(p.dtype, [&](auto* t) {
    return launch(attention_backward_prepare<std::remove_pointer_t<decltype(t)>>,
                  {dim3(block_count(ceil_div(rows.count, kRowThreads / 32))), dim3(kRowThreads), 0, s}, p,
                  rows);
  });
  if (error == cudaSuccess && p.dsinks)
    error = launch(attention_backward_sinks<256>, {task_grid(p.heads), dim3(256), 0, s}, p, rows);
  if (error == cudaSuccess && p.dmask.data) error = backward_mask_gradient(p, rows, s);
  return error;
}

int backward_naive_cuda(const AttentionBackwardParams& p, dlops_stream stream) {
  if (!fits_int(p)) return cudaErrorInvalidValue;
  const BackwardRows rows = rows_of(p, false);
  const int error = prepare(p, rows, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? backward_naive_passes(p, rows, stream) : error;
}

// dq, dk, dv by the tensor cores.
static int passes(const AttentionBackwardParams& p, const BackwardRows& rows, Access access, cudaStream_t s) {
  const int64_t d = greater(p.d, p.dv);
  const bool half = p.dtype == Dtype::f16;
  const auto pass = d <= 64    ? (half ? backward_64_f16 : backward_64_bf16)
                    : d <= 128 ? (half ? backward_128_f16 : backward_128_bf16)
                               : (half ? backward_256_f16 : backward_256_bf16);
  const int error = pass(p, rows, access, s);
  if (error != cudaSuccess || !rows.dq) return error;
  const Launch l{dim3(block_count(ceil_div(rows.count, kRowThreads / 32))), dim3(kRowThreads), 0, s};
  return half ? launch(attention_backward_convert<__half>, l, p, rows)
              : launch(attention_backward_convert<__nv_bfloat16>, l, p, rows);
}

int backward_cuda(const AttentionBackwardParams& p, dlops_stream stream) {
  if (!fits_int(p)) return cudaErrorInvalidValue;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const bool tensor_cores = has_tensor_cores(p.dtype);
  // 16-bit types are alike here. Null tensors, which are not wanted, do not object.
  const Access access{wide_inputs(p), wide_heads<__half>(p.dq, p.d) && wide_heads<__half>(p.dk, p.d) &&
                                          wide_heads<__half>(p.dv_, p.dv)};
  const BackwardRows rows = rows_of(p, tensor_cores && access.in && access.out && may_use_atomics(p));
  int error = prepare(p, rows, s);
  if (error == cudaSuccess && tensor_cores) error = passes(p, rows, access, s);
  if (error == cudaSuccess && !tensor_cores && (p.dk.data || p.dv_.data))
    error = backward_fp32_keys(p, rows, s);
  if (error == cudaSuccess && !tensor_cores && p.dq.data) error = backward_fp32_rows(p, rows, s);
  return error == cudaSuccess && p.dq.data ? backward_careful(p, rows, s) : error;
}

}  // namespace dlops
