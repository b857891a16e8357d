#include "depthwise_last.cuh"

namespace dlops::conv {

template <class T>
static int last(const DepthwiseParams& p, cudaStream_t stream) {
  if (!quads_aligned<T>(p.x, p.y, p.epilogue.residual)) return kNotMine;
  switch (p.kernel[2]) {
    case 3: return run_depthwise_last<T, 3>(p, stream);
    case 4: return run_depthwise_last<T, 4>(p, stream);
    case 5: return run_depthwise_last<T, 5>(p, stream);
    case 7: return run_depthwise_last<T, 7>(p, stream);
    default: return run_depthwise_last<T, kTapChunk>(p, stream);
  }
}

int depthwise_last(const DepthwiseParams& p, cudaStream_t stream) {
  if (!p.channels_last || p.filters != p.channels || p.channels % 4 != 0) return kNotMine;
  if (p.stride[2] != 1 || p.dilation[2] != 1) return kNotMine;
  return with_dtype(p.dtype, [&](auto* t) { return last<std::remove_pointer_t<decltype(t)>>(p, stream); });
}

}  // namespace dlops::conv
