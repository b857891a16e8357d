#include "depthwise_weight_last.cuh"

namespace dlops::conv {

template <class T>
static int last(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  const int64_t width = p.kernel[2], one_piece = width == 3 || width == 4 || width == 5 || width == 7;
  const int64_t tasks = ceil_div(p.channels, 4 * kLastQuads) * p.kernel[0] * p.kernel[1] *
                        (one_piece ? 1 : ceil_div(width, kLastChunk)) * parts.count;
  const Launch l{task_grid(tasks), dim3(kRowThreads), 0, stream};
  switch (width) {
    case 3: return launch(conv_depthwise_weight_last<T, 3>, l, p, parts);
    case 4: return launch(conv_depthwise_weight_last<T, 4>, l, p, parts);
    case 5: return launch(conv_depthwise_weight_last<T, 5>, l, p, parts);
    case 7: return launch(conv_depthwise_weight_last<T, 7>, l, p, parts);
    default: return launch(conv_depthwise_weight_last<T, kLastChunk>, l, p, parts);
  }
}

int depthwise_weight_last(const ConvWeightParams& p, const Parts& parts, cudaStream_t stream) {
  return with_dtype(p.dtype,
                    [&](auto* t) { return last<std::remove_pointer_t<decltype(t)>>(p, parts, stream); });
}

}  // namespace dlops::conv
