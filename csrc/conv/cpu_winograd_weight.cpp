// The weight gradient of 3x3 convolutions by the adjoint of F(4x4, 3x3).
#include "cpu_parts.h"
#include "winograd.h"
#include "winograd_weight.h"

namespace dlops::DLOPS_PARTS {

const char* winograd_weight_refuses(const ConvProblem& p) { return winograd_refusal(p); }
void winograd_weight(const ConvWeightParams& p) { winograd_weight_run(p); }

}  // namespace dlops::DLOPS_PARTS
