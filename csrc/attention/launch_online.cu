#include "launch_parts.h"
#include "online.cuh"

namespace dlops {

using namespace attention;

template <int D>
static int online(const AttentionForwardParams& p, bool wide, dlops_stream stream) {
  const Tasks tasks = tasks_of(p, kOnlineTile);
  return launch(attention_online<D>,
                {tasks.grid(), dim3(kOnlineThreads), 0, static_cast<cudaStream_t>(stream)}, p, tasks, wide);
}

int attention_online_cuda(const AttentionForwardParams& p, dlops_stream stream) {
  if (!fits_int(p)) return cudaErrorInvalidValue;
  return with_dtype(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool wide = wide_heads<T>(p.q, p.d) && wide_heads<T>(p.k, p.d) && wide_heads<T>(p.v, p.dv);
    return p.dv <= 64    ? online<64>(p, wide, stream)
           : p.dv <= 128 ? online<128>(p, wide, stream)
                         : online<256>(p, wide, stream);
  });
}

}  // namespace dlops
