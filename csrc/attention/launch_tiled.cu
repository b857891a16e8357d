#include "launch_device.h"
#include "launch_parts.h"
#include "scores.cuh"

namespace dlops {

using namespace attention;

int attention_tiled_cuda(const AttentionForwardParams& p, dlops_stream stream) {
  if (!has_tensor_cores(p.dtype)) return attention_online_cuda(p, stream);
  if (!fits_int(p)) return cudaErrorInvalidValue;
  return p.dtype == Dtype::f16 ? tiled_f16(p, stream) : tiled_bf16(p, stream);
}

}  // namespace dlops
