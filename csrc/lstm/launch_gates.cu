#include <type_traits>

#include "../cuda/vec.h"
#include "launch_parts.h"

namespace dlops {
namespace lstm {

template <class T>
int gates_of(const GatesParams&, dlops_stream);  // launch_gates_forward_*.cu
template <class T>
int gates_backward_of(const GatesBackwardParams&, dlops_stream);  // launch_gates_backward_*.cu

}  // namespace lstm

int gates_cuda(const GatesParams& p, dlops_stream stream) {
  return with_dtype(p.dtype,
                    [&](auto* t) { return lstm::gates_of<std::remove_pointer_t<decltype(t)>>(p, stream); });
}

int gates_backward_cuda(const GatesBackwardParams& p, dlops_stream stream) {
  return with_dtype(p.dtype, [&](auto* t) {
    return lstm::gates_backward_of<std::remove_pointer_t<decltype(t)>>(p, stream);
  });
}

}  // namespace dlops
