#include "cpu_parts.h"
#include "direct_weight.h"
#include "pointwise.h"

namespace dlops::DLOPS_PARTS {
namespace {

const char* refuses(const ConvProblem& p) {
  for (int i = 0; i < 3; i++)
    if (p.kernel[i] != 1 || p.stride[i] != 1 || p.padding[i] != 0 || p.in[i] != p.out[i])
      return "is for 1x1 kernels with stride 1 and no padding";
  return p.groups == 1 ? nullptr : "is for groups = 1";
}

void pack(const ConvProblem& p, const Correlation& c, const void* w, float* packed) {
  with_dtype(p.dtype, [&]<class T>(T*) { pack_weights(c, static_cast<const T*>(w), packed); });
}

void gemm(const ConvProblem& p, const Correlation& c, const void* source, const float* packed,
          const ConvEpilogue& e, void* result) {
  with_dtype(p.dtype, [&]<class T>(T*) {
    const T *from = static_cast<const T*>(source), *bias = static_cast<const T*>(e.bias);
    T* to = static_cast<T*>(result);
    if (p.channels_last || !fills_lanes(c.source_pixels()))
      return correlate<T>(p.threads, 1, [&](int64_t) { return c; }, 0, e,
                          {from, packed, nullptr, nullptr, to, {}});
    pointwise<T>({c.batch, c.channels, c.filters, c.source_pixels(), p.threads},
                 {from, packed, bias, static_cast<const T*>(e.residual), to, e.activation});
  });
}

}  // namespace

const char* gemm_forward_refuses(const ConvProblem& p) { return refuses(p); }
int64_t gemm_forward_packed_floats(const ConvProblem& p) {
  return packed_floats_of(forward_correlation(p), 1);
}
void gemm_forward_pack(const ConvProblem& p, const void* w, float* packed) {
  pack(p, forward_correlation(p), w, packed);
}
void gemm_forward(const ConvForwardParams& p) {
  gemm(p, forward_correlation(p), p.x, p.packed, p.epilogue, p.y);
}

const char* gemm_data_refuses(const ConvProblem& p) { return refuses(p); }
int64_t gemm_data_packed_floats(const ConvProblem& p) { return packed_floats_of(data_correlation(p, 0), 1); }
void gemm_data_pack(const ConvProblem& p, const void* w, float* packed) {
  pack(p, data_correlation(p, 0), w, packed);
}
void gemm_data(const ConvDataParams& p) { gemm(p, data_correlation(p, 0), p.dy, p.packed, p.epilogue, p.dx); }

const char* gemm_weight_refuses(const ConvProblem& p) { return refuses(p); }
void gemm_weight(const ConvWeightParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) { direct_weight_of<T>(p); });
}

}  // namespace dlops::DLOPS_PARTS
