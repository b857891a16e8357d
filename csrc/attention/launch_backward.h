// The backward's launchers, one group per launch_backward_*.cu so that they compile side by side.
#pragma once
#include "backward_pass.cuh"
#include "launch_parts.h"

namespace dlops::attention {

inline dim3 task_grid(int64_t tasks) { return dim3(block_count(tasks)); }

// How the tensors of a call may be accessed.
struct Access {
  bool in;   // q, k, v, dout 16 bytes at a time
  bool out;  // dq, dk, dv likewise
};

int backward_naive_passes(const AttentionBackwardParams&, const BackwardRows&, dlops_stream);
int backward_careful(const AttentionBackwardParams&, const BackwardRows&, dlops_stream);
int backward_fp32_rows(const AttentionBackwardParams&, const BackwardRows&, dlops_stream);
int backward_fp32_keys(const AttentionBackwardParams&, const BackwardRows&, dlops_stream);
int backward_mask_gradient(const AttentionBackwardParams&, const BackwardRows&, dlops_stream);
// On tensor cores, d and dv up to the number in the name.
int backward_64_f16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);
int backward_128_f16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);
int backward_256_f16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);
int backward_64_bf16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);
int backward_128_bf16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);
int backward_256_bf16(const AttentionBackwardParams&, const BackwardRows&, Access, dlops_stream);

template <class T, int D, Pass pass, bool extras, bool atomic = false>
int backward_pass(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                  cudaStream_t stream) {
  using Tile = MmaTile<D>;
  const int64_t tiles = ceil_div(makes_dq(pass) ? p.q_len : p.k_len, Tile::owned);
  const int64_t tasks = p.batch * (makes_dq(pass) ? p.heads : p.kv_heads) * tiles;
  if (tasks == 0) return cudaSuccess;
  return launch(attention_backward_mma<T, D, pass, extras, atomic>,
                {task_grid(tasks), dim3(Tile::threads), Tile::bytes, stream}, p,
                MmaPlan{rows, tiles, tasks, access.in, access.out});
}

template <class T, int D, bool extras, bool atomic>
int backward_keys(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                  cudaStream_t stream) {
  if constexpr (D < 128 || (D == 128 && !extras)) {
    return backward_pass<T, D, Pass::dkv, extras, atomic>(p, rows, access, stream);
  } else {  // the registers do not hold both
    int error = cudaSuccess;
    if (p.dk.data || atomic) error = backward_pass<T, D, Pass::dk, extras, atomic>(p, rows, access, stream);
    if (error == cudaSuccess && p.dv_.data)
      error = backward_pass<T, D, Pass::dv, extras>(p, rows, access, stream);
    return error;
  }
}

// Head dimensions are padded to D, or to kLess where that suffices and there is a kernel: without extras and atomics. Any
// alignment counts as an extra: the kernels without are for what is fast.
template <class T, int D, int kLess>
int backward_tensor_cores(const AttentionBackwardParams& p, const BackwardRows& rows, Access access,
                          dlops_stream stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const bool extras = has_extras(p) || !access.in || !access.out, less = greater(p.d, p.dv) <= kLess;
  int error = cudaSuccess;
  if (p.dk.data || p.dv_.data) {
    if (extras)
      error = backward_keys<T, D, true, false>(p, rows, access, s);
    else if (rows.dq)
      error = backward_keys<T, D, false, true>(p, rows, access, s);
    else
      error = less ? backward_keys<T, kLess, false, false>(p, rows, access, s)
                   : backward_keys<T, D, false, false>(p, rows, access, s);
  }
  if (error != cudaSuccess || !p.dq.data || rows.dq) return error;
  if (extras) return backward_pass<T, D, Pass::dq, true>(p, rows, access, s);
  return less ? backward_pass<T, kLess, Pass::dq, false>(p, rows, access, s)
              : backward_pass<T, D, Pass::dq, false>(p, rows, access, s);
}

}  // namespace dlops::attention
