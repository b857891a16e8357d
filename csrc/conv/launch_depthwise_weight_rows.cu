#include "depthwise_weight_rows.cuh"

namespace dlops::conv {

template <class T>
static int rows(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  const Launch l{task_grid(p.filters * parts.count), dim3(kRowThreads), 0, stream};
  const bool wide = wide_rows<T>(p.out[2], p.dy);
  switch (window_of(p)) {
    case 31: return launch(conv_depthwise_weight_rows<T, 3, 1>, l, p, parts, wide);
    case 32: return launch(conv_depthwise_weight_rows<T, 3, 2>, l, p, parts, wide);
    case 43: return launch(conv_depthwise_weight_rows<T, 4, 3>, l, p, parts, wide);
    case 52: return launch(conv_depthwise_weight_rows<T, 5, 2>, l, p, parts, wide);
    default: return launch(conv_depthwise_weight_rows<T, 7, 3>, l, p, parts, wide);
  }
}

int depthwise_weight_rows(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  return with_dtype(p.dtype,
                    [&](auto* t) { return rows<std::remove_pointer_t<decltype(t)>>(p, parts, stream); });
}

}  // namespace dlops::conv
