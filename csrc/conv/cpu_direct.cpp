#include "cpu_parts.h"
#include "direct.h"

namespace dlops::DLOPS_PARTS {

const char* direct_forward_refuses(const ConvProblem&) { return nullptr; }
int64_t direct_forward_packed_floats(const ConvProblem& p) {
  return packed_floats_of(forward_correlation(p), p.taps());
}
void direct_forward_pack(const ConvProblem& p, const void* w, float* packed) {
  with_dtype(p.dtype,
             [&]<class T>(T*) { pack_weights(forward_correlation(p), static_cast<const T*>(w), packed); });
}
void direct_forward(const ConvForwardParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) {
    CorrelationTensors<T> t{static_cast<const T*>(p.x), p.packed, nullptr, nullptr, static_cast<T*>(p.y), {}};
    correlate(p.threads, 1, [&](int64_t) { return forward_correlation(p); }, 0, p.epilogue, t);
  });
}

// Each phase of the lattice has packed weights of its own.
const char* direct_data_refuses(const ConvProblem& p) {
  for (int i = 0; i < 3; i++)
    if (p.stride[i] > 4096) return "is for strides up to 4096";
  return data_phases(p) > 4096 ? "is for strides whose product is at most 4096" : nullptr;
}
int64_t direct_data_packed_floats(const ConvProblem& p) {
  return data_phases(p) * packed_floats_of(data_correlation(p, 0), most_data_taps(p));
}
void direct_data_pack(const ConvProblem& p, const void* w, float* packed) {
  const int64_t floats = packed_floats_of(data_correlation(p, 0), most_data_taps(p));
  with_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t phase = 0; phase < data_phases(p); phase++)
      pack_weights(data_correlation(p, phase), static_cast<const T*>(w), packed + phase * floats);
  });
}
void direct_data(const ConvDataParams& p) {
  const int64_t floats = packed_floats_of(data_correlation(p, 0), most_data_taps(p));
  with_dtype(p.dtype, [&]<class T>(T*) {
    CorrelationTensors<T> t{static_cast<const T*>(p.dy), p.packed, nullptr, nullptr,
                            static_cast<T*>(p.dx),       {}};
    correlate(
        p.threads, data_phases(p), [&](int64_t phase) { return data_correlation(p, phase); }, floats,
        p.epilogue, t);
  });
}

}  // namespace dlops::DLOPS_PARTS
