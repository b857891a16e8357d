#include "depthwise_weight_columns.cuh"

namespace dlops::conv {

int depthwise_weight_columns(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  switch (p.kernel[2]) {
    case 3: return run_depthwise_weight_columns<3>(p, parts, stream);
    case 5: return run_depthwise_weight_columns<5>(p, parts, stream);
    default: return depthwise_weight_columns_7(p, parts, stream);
  }
}

}  // namespace dlops::conv
