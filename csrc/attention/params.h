// What the attention kernels take. One struct describes the problem for every pass and every device; a pass adds its
// inputs and outputs. Strides are in elements; a broadcast dimension has stride 0.
//
// For row i and key j of one sequence and head, with shift = k_len - q_len where bottom_right, else 0:
//
//   s_ij = scale q_i . k_j
//   s_ij = softcap tanh(s_ij / softcap)                          where softcap > 0
//   s_ij = s_ij - slope |i + shift - j| + mask_ij                 (a boolean mask adds 0 where true, -inf where false)
//   s_ij = -inf                                                   where j is outside [i + shift - window_left,
//                                                                 i + shift + window_right] or past the keys
//   lse_i = ln sum_j exp s_ij          p_ij = exp(s_ij) / (exp(lse_i) + exp(sink))       out_i = sum_j drop_ij p_ij v_j
//
// drop_ij is 0 or 1 / (1 - dropout_p). A row that sees no key has lse -inf and output 0.
#pragma once
#include <cstdint>

#include "../dtype.h"

namespace dlops {

// [batch, head, row, d]; the last dimension has stride 1. Packed sequences (varlen): batch stride 0, and sequence b starts
// at row cu_seqlens[b].
struct HeadsIn {
  const void* data;
  int64_t batch, head, row;
};
struct HeadsOut {
  void* data;
  int64_t batch, head, row;
};

// [batch, head, row] float32, rows side by side.
struct RowsIn {
  const float* data;
  int64_t batch, head;
};
struct RowsOut {
  float* data;
  int64_t batch, head;
};

enum class MaskKind : int32_t { none, boolean, f32, f16, bf16 };

// [batch, head, row, key], any strides.
struct MaskIn {
  const void* data;  // bool (1 byte), or a type to add
  MaskKind kind;
  int64_t batch, head, row, key;
};
struct MaskOut {
  float* data;
  int64_t batch, head, row, key;
};

struct AttentionProblem {
  HeadsIn q, k, v;  // [batch, heads, q_len, d], [batch, kv_heads, k_len, d], [batch, kv_heads, k_len, dv]
  MaskIn mask;
  const float* alibi_slopes;  // [heads] or null; with a batch stride [batch, heads]
  int64_t alibi_batch;
  const float* sinks;                 // [heads] or null
  const int32_t* key_lengths;         // [batch] or null: the keys of sequence b that exist, <= k_len
  const int32_t *cu_q, *cu_k;         // [batch + 1] or null: packed sequences
  const int64_t* rng;                 // {seed, offset}; read where dropout_p > 0
  int64_t batch, heads, kv_heads;     // heads is a multiple of kv_heads
  int64_t q_len, k_len;               // packed: of the longest sequence
  int64_t total_q, total_k;           // packed: rows in q and in k; otherwise q_len, k_len
  int64_t d, dv;                      // 1..256
  int64_t window_left, window_right;  // < 0: unbounded. Causal is window_right = 0
  float scale, softcap, dropout_p;    // dropout_p in [0, 1)
  bool bottom_right;
  Dtype dtype;  // of q, k, v, out and their gradients
  int threads;  // CPU
};

// What the CUDA launcher keeps in the workspace, by the rung that is to run: all scores, or the parts to be merged.
enum class AttentionScratch : int32_t { none, naive, split };

struct AttentionForwardParams : AttentionProblem {
  HeadsOut out;
  RowsOut lse;       // natural logarithm, without the sink
  float* workspace;  // CUDA: as many floats as the launcher's workspace() says
  AttentionScratch scratch;
};

struct AttentionBackwardParams : AttentionProblem {
  HeadsIn out, dout;
  RowsIn lse;
  RowsIn dlse;           // gradient of lse; data null: none
  HeadsOut dq, dk, dv_;  // data null: not wanted
  MaskOut dmask;  // data null: not wanted. Every element of the mask's own (unbroadcast) shape is written
  float* dsinks;  // [heads] or null
  bool deterministic;  // CUDA: dq in a pass of its own; otherwise by atomic additions
  float* workspace;
};

// Rotary position embedding (Su et al. 2021, section 3.4.2) of x [batch, head, row, d] -> y: pairs (x_a, x_b) become
// (x_a cos - x_b sin, x_b cos + x_a sin); pair i is (2i, 2i + 1) where interleaved, else (i, i + rotary / 2). Elements past
// rotary pass through.
struct RotaryParams {
  HeadsIn x;
  HeadsOut y;
  const void *cos, *sin;  // [batch, row, rotary / 2], strides below; the last dimension has stride 1
  int64_t table_batch, table_row;
  int64_t batch, heads, rows, d, rotary;
  bool interleaved;
  bool inverse;  // rotate back: sin negated
  Dtype dtype, table_dtype;
  int threads;
};

}  // namespace dlops
