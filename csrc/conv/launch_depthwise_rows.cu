#include "depthwise_rows.cuh"

namespace dlops::conv {

template <class T, int K, int lead>
static int rows(const DepthwiseParams& p, cudaStream_t stream) {
  if (!wide_rows<T>(p.in[2], p.x)) return kUnaligned;
  const RowGrid g =
      row_grid(p.batch * p.filters * p.out[0] * p.out[1], ceil_div(p.out[2], kVec<T>), kTogether);
  const bool wide = wide_rows<T>(p.out[2], p.y, p.epilogue.residual);
  return launch(conv_depthwise_rows<T, K, lead>, {g.grid, g.block, 0, stream}, p, wide);
}

// The windows that are worth a kernel: causal ones, their adjoints, and those that keep the size.
template <class T>
static int rows(const DepthwiseParams& p, cudaStream_t stream) {
  if (p.padding_mode != PaddingMode::zeros || p.stride[2] != 1 || p.dilation[2] != 1) return kNotMine;
  if (p.in[2] % kVec<T> != 0) return kNotMine;
  switch (window_of(p)) {
    case 30: return rows<T, 3, 0>(p, stream);
    case 31: return rows<T, 3, 1>(p, stream);
    case 32: return rows<T, 3, 2>(p, stream);
    case 40: return rows<T, 4, 0>(p, stream);
    case 43: return rows<T, 4, 3>(p, stream);
    case 52: return rows<T, 5, 2>(p, stream);
    case 73: return rows<T, 7, 3>(p, stream);
    default: return kNotMine;
  }
}

int depthwise_rows(const DepthwiseParams& p, cudaStream_t stream) {
  if (p.channels_last) return kNotMine;
  return with_dtype(p.dtype, [&](auto* t) { return rows<std::remove_pointer_t<decltype(t)>>(p, stream); });
}

}  // namespace dlops::conv
