#include "cpu_parts.h"
#include "direct_weight.h"

namespace dlops::DLOPS_PARTS {

const char* direct_weight_refuses(const ConvProblem&) { return nullptr; }
void direct_weight(const ConvWeightParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) { direct_weight_of<T>(p); });
}

}  // namespace dlops::DLOPS_PARTS
