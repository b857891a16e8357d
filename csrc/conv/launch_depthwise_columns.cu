#include "depthwise_columns.cuh"

namespace dlops::conv {

template <class T, int K>
static int columns(const DepthwiseParams& p, cudaStream_t stream) {
  const int64_t count = p.batch * p.filters * p.out[0] * ceil_div(p.out[1], kColumnOutputs) * p.out[2];
  return launch(conv_depthwise_columns<T, K>, {flat_grid(count), dim3(kRowThreads), 0, stream}, p);
}

template <class T>
static int columns(const DepthwiseParams& p, cudaStream_t stream) {
  if (p.stride[1] != 1 || p.dilation[1] != 1 || p.out[1] < kColumnOutputs / 2) return kNotMine;
  switch (p.kernel[1]) {
    case 3: return columns<T, 3>(p, stream);
    case 5: return columns<T, 5>(p, stream);
    case 7: return columns<T, 7>(p, stream);
    default: return columns<T, kColumnChunk>(p, stream);
  }
}

int depthwise_columns(const DepthwiseParams& p, cudaStream_t stream) {
  if (p.channels_last) return kNotMine;
  return with_dtype(p.dtype, [&](auto* t) { return columns<std::remove_pointer_t<decltype(t)>>(p, stream); });
}

}  // namespace dlops::conv
