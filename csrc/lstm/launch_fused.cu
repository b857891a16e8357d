#include "launch_parts.h"
#include "room.h"

namespace dlops {

using namespace lstm;

const char* fused_refuses_cuda(const RecurrenceProblem& p) { return turns_refuse(p, room()); }

int64_t fused_forward_workspace_cuda(const RecurrenceParams& p) {
  return turns_workspace(p, takes_large(p), false, true);
}
int fused_forward_cuda(const RecurrenceParams& p, dlops_stream stream) {
  return with_dtype(
      p.dtype, [&](auto* t) { return turns_forward<std::remove_pointer_t<decltype(t)>, false>(p, stream); });
}

int64_t fused_backward_workspace_cuda(const RecurrenceBackwardParams& p) {
  return turns_workspace(p, takes_large(p), true, true);
}
int fused_backward_cuda(const RecurrenceBackwardParams& p, dlops_stream stream) {
  const int error = with_dtype(
      p.dtype, [&](auto* t) { return turns_backward<std::remove_pointer_t<decltype(t)>, false>(p, stream); });
  return error == cudaSuccess && p.h_before ? h_before_cuda(p, stream) : error;
}

}  // namespace dlops
