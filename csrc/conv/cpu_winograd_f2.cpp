// Winograd's convolution, F(2x2, 3x3): forward and data gradient.
#include "cpu_parts.h"
#include "winograd.h"

namespace dlops::DLOPS_PARTS {

const char* winograd_f2_forward_refuses(const ConvProblem& p) { return winograd_refusal(p); }
int64_t winograd_f2_forward_packed_floats(const ConvProblem& p) { return winograd_floats<Tile2>(p); }
void winograd_f2_forward_pack(const ConvProblem& p, const void* w, float* packed) {
  winograd_pack<Tile2>(p, w, false, packed);
}
void winograd_f2_forward(const ConvForwardParams& p) { winograd_run<Tile2>(p); }

const char* winograd_f2_data_refuses(const ConvProblem& p) { return winograd_refusal(p); }
int64_t winograd_f2_data_packed_floats(const ConvProblem& p) { return winograd_floats<Tile2>(mirrored(p)); }
void winograd_f2_data_pack(const ConvProblem& p, const void* w, float* packed) {
  winograd_pack<Tile2>(mirrored(p), w, true, packed);
}
void winograd_f2_data(const ConvDataParams& p) { winograd_run<Tile2>(mirrored(p)); }

}  // namespace dlops::DLOPS_PARTS
