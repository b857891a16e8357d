#include "launch_device.h"
#include "launch_parts.h"
#include "scores.cuh"

namespace dlops {

using namespace attention;

int attention_pipelined_cuda(const AttentionForwardParams& p, dlops_stream stream) {
  if (!has_tensor_cores(p.dtype)) return attention_online_cuda(p, stream);
  if (!fits_int(p)) return cudaErrorInvalidValue;
  const bool broad = greater(p.d, p.dv) > (has_extras(p) ? 128 : 96);
  if (p.dtype == Dtype::f16) return broad ? pipelined_broad_f16(p, stream) : pipelined_narrow_f16(p, stream);
  return broad ? pipelined_broad_bf16(p, stream) : pipelined_narrow_bf16(p, stream);
}

}  // namespace dlops
