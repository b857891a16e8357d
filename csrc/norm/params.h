// What the norm kernels take: plain pointers and sizes. The torch face guarantees the layouts named here.
//
// Two views cover the family. GroupNorm sees [N, C, HW] (NCHW) or [N, HW, C] (channels_last) and shares one mean and
// one variance among the HW * C/G values of a group. LayerNorm and RMSNorm see [rows, d] and normalise each row.
//
// `workspace` is for kernels whose blocks exchange partial results through memory (CUDA): float32, as many elements as
// the launcher's *_workspace function says, contents undefined. CPU kernels leave it alone.
#pragma once
#include <cstdint>

#include "../dtype.h"

namespace dlops {

//   xhat = (x - mean) * rstd                 mean, var over (C/G, HW);  rstd = 1/sqrt(var + eps), biased var
//   u    = xhat * weight[c] + bias[c]
//   z    = u * (1 + scale[n,c]) + shift[n,c]
//   y    = silu ? z * sigmoid(z) : z
struct GroupNormParams {
  const void* x;              // [N, C, HW], or [N, HW, C] where channels_last
  const void *weight, *bias;  // [C], each or null (1, 0)
  const void *scale, *shift;  // [N, C], each or null (0, 0)
  void* y;                    // like x
  float *mean, *rstd;         // [N, G] out
  float* workspace;           //
  int64_t n, c, hw, groups;   // groups divides c
  float eps;                  //
  bool channels_last, silu;   //
  Dtype dtype;                // of x, y
  Dtype param_dtype;          // of weight, bias, scale, shift: f32, or dtype
  int threads;                // CPU only
};

// With dz = dy * silu'(z), A[n,c] = sum_hw dz * xhat, B[n,c] = sum_hw dz and k[n,c] = weight[c] * (1 + scale[n,c]):
//   dshift = B                        dscale  = weight * A + bias * B
//   dbias  = sum_n (1 + scale) * B    dweight = sum_n (1 + scale) * A
//   dx     = rstd * (k * dz - (sum_group k*B + xhat * sum_group k*A) / (HW * C/G))
// Everything but dx follows from A and B. A null output is not computed.
struct GroupNormBackwardParams {
  const void *dy, *x;         // like x of the forward
  const void *weight, *bias;  // [C] or null, as in the forward
  const void *scale, *shift;  // [N, C] or null, as in the forward
  const float *mean, *rstd;   // [N, G] from the forward
  void* dx;                   // like x, or null
  float *dweight, *dbias;     // [C], each or null
  float *dscale, *dshift;     // [N, C], each or null
  float* workspace;           //
  int64_t n, c, hw, groups;   //
  bool channels_last, silu;   //
  Dtype dtype, param_dtype;   // dx has dtype; the other gradients are float32
  int threads;                // CPU only
};

// LayerNorm: y = (s - mean) * rstd * weight + bias, rstd = 1/sqrt(var + eps);  RMSNorm (rms): y = s * rstd * weight,
// rstd = 1/sqrt(mean(s^2) + eps), bias null.  s = x, or x + residual rounded to dtype: what two separate operations
// would hand on, and what the backward pass finds in `sum`.
struct RowNormParams {
  const void* x;              // [rows, d]
  const void* residual;       // [rows, d] or null
  const void *weight, *bias;  // [d], each or null
  void* y;                    // [rows, d]
  void* sum;                  // [rows, d] out: s; null where residual is null
  float* mean;                // [rows] out; null for RMSNorm
  float* rstd;                // [rows] out
  int64_t rows, d;            //
  float eps;                  //
  bool rms;                   //
  Dtype dtype;                // of x, residual, y, sum
  Dtype param_dtype;          // of weight, bias: f32, or dtype
  int threads;                // CPU only
};

//   g  = dy * weight, xhat = (s - mean) * rstd (RMSNorm: mean = 0)
//   dx = rstd * (g - mean_d(g) - xhat * mean_d(g * xhat)) + dsum      (RMSNorm: without mean_d(g))
//   dweight = sum_rows dy * xhat, dbias = sum_rows dy
// x + residual has one gradient: dx is that of both addends. A null output is not computed.
struct RowNormBackwardParams {
  const void* dy;            // [rows, d]
  const void* dsum;          // [rows, d] or null: the gradient that arrives at `sum`
  const void* s;             // [rows, d]: what was normalised (x, or sum)
  const void* weight;        // [d] or null
  const float* mean;         // [rows]; null for RMSNorm
  const float* rstd;         // [rows]
  void* dx;                  // [rows, d] or null
  float *dweight, *dbias;    // [d], each or null
  float* workspace;          //
  int64_t rows, d;           //
  bool rms;                  //
  Dtype dtype, param_dtype;  // dx has dtype; dweight and dbias are float32
  int threads;               // CPU only
};

}  // namespace dlops
