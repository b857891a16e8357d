// What the diffusion kernels take: plain pointers and sizes. Tensors are [N, M]: N samples of M elements each, all with
// the same dense layout (C order where noise is drawn by seeds). The torch face guarantees it.
#pragma once
#include <cstdint>

#include "../dtype.h"

namespace dlops {

// The columns of a schedule table [rows, kStepColumns], float32. With m the (guided) model output:
//   x0   = px*sample + pm*m + pn*noise, clamped to [-clip, clip] (or to the dynamic threshold)
//   prev = a*sample + b*m + c*x0 + h1*history[0] + h2*history[1] + h3*history[2] + d*noise
enum StepColumn : int { kPx, kPm, kPn, kClip, kA, kB, kC, kH1, kH2, kH3, kD, kStepColumns };

// Which row of the table a sample takes: its entry of `rows`, else `row`. A row that lives on the device cannot be
// checked on the host: kernels clamp it to the table.
struct RowChoice {
  const float* table;   // [table_rows, columns]
  int64_t table_rows;   //
  const int64_t* rows;  // [N] (stride 1), [1] (stride 0), or null
  int64_t row_stride;   //
  int64_t row;          // used where rows is null
};

struct StepParams {
  const void *sample, *model;  // [N, M]
  const void* uncond;          // [N, M] or null: no classifier-free guidance
  const void* history[3];      // [N, M] or null; newest first
  const void* noise;           // [N, M] or null
  const int64_t* seeds;        // [N] Philox keys, or null
  RowChoice rows;
  const float* scale;         // [N, 2]: factor on m, dynamic threshold (0: none); from step_reduce, or null
  float guidance;             // m = uncond + guidance (model - uncond)
  void *prev, *x0;            // [N, M] out; x0 may be null
  int64_t samples, elements;  // N, M
  Dtype dtype;
  int threads;  // CPU only
};

// The one extra launch that guidance rescale and dynamic thresholding need: two numbers per sample.
struct StepReduceParams {
  const void *sample, *model, *uncond;  // as above
  RowChoice rows;
  float guidance;
  float rescale;          // phi of Lin et al. 2023, section 3.4; 0: off
  float threshold_ratio;  // quantile of |x0|, Saharia et al. 2022, section 2.3; 0: off
  float threshold_max;    // the threshold is clamped to [1, threshold_max]
  float* scale;           // [N, 2] out
  int64_t samples, elements;
  Dtype dtype;
  int threads;
};

// out = s*sample + n*noise, the columns of a table [rows, 2].
struct AddNoiseParams {
  const void *sample, *noise;  // [N, M]; noise null: drawn by seeds
  const int64_t* seeds;        // [N] or null
  RowChoice rows;
  int32_t step;  // keys the noise
  void* out;     // [N, M]
  int64_t samples, elements;
  Dtype dtype;
  int threads;
};

struct RandnParams {
  const int64_t* seeds;  // [N]
  int32_t step;          // -1: initial latents
  void* out;             // [N, M]
  int64_t samples, elements;
  Dtype dtype;
  int threads;
};

}  // namespace dlops
