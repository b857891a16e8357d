#include "depthwise_weight_columns.cuh"

namespace dlops::conv {

int depthwise_weight_columns_7(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  return run_depthwise_weight_columns<7>(p, parts, stream);
}

}  // namespace dlops::conv
