// Winograd's convolution, F(4x4, 3x3): forward and data gradient.
#include "cpu_parts.h"
#include "winograd.h"

namespace dlops::DLOPS_PARTS {

const char* winograd_forward_refuses(const ConvProblem& p) { return winograd_refusal(p); }
int64_t winograd_forward_packed_floats(const ConvProblem& p) { return winograd_floats<Tile4>(p); }
void winograd_forward_pack(const ConvProblem& p, const void* w, float* packed) {
  winograd_pack<Tile4>(p, w, false, packed);
}
void winograd_forward(const ConvForwardParams& p) { winograd_run<Tile4>(p); }

const char* winograd_data_refuses(const ConvProblem& p) { return winograd_refusal(p); }
int64_t winograd_data_packed_floats(const ConvProblem& p) { return winograd_floats<Tile4>(mirrored(p)); }
void winograd_data_pack(const ConvProblem& p, const void* w, float* packed) {
  winograd_pack<Tile4>(mirrored(p), w, true, packed);
}
void winograd_data(const ConvDataParams& p) { winograd_run<Tile4>(mirrored(p)); }

}  // namespace dlops::DLOPS_PARTS
