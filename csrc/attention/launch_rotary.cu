#include "launch_parts.h"
#include "rotary.cuh"

namespace dlops {

using namespace attention;

int rotary_cuda(const RotaryParams& p, dlops_stream stream) {
  if (p.batch * p.heads * p.rows * p.d == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    // Every part of every row starts and ends on 16 bytes.
    bool wide = wide_rows<T>(p.d, p.x.data, p.y.data, p.cos, p.sin) && p.rotary % kVec<T> == 0;
    if (!p.interleaved) wide = wide && p.rotary / 2 % kVec<T> == 0;
    for (int64_t stride :
         {p.x.batch, p.x.head, p.x.row, p.y.batch, p.y.head, p.y.row, p.table_batch, p.table_row})
      wide = wide && stride % kVec<T> == 0;
    const int64_t turned = rotary_turned<T>(p), chunks = rotary_chunks<T>(p);
    const RowGrid g = row_grid(p.batch * p.heads * p.rows, chunks, 1);
    return launch(rotary_fused<T>, {g.grid, g.block, 0, static_cast<cudaStream_t>(stream)}, p, turned, chunks,
                  wide);
  });
}

}  // namespace dlops
