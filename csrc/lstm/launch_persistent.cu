#include "launch_parts.h"
#include "room.h"

namespace dlops {

using namespace lstm;

const char* persistent_refuses_cuda(const RecurrenceProblem& p) {
  const Room here = room();
  if (const char* why = turns_refuse(p, here)) return why;
  if (!here.cooperative) return "needs cooperative launches, which this GPU does not have";
  if (!fits(small_turns(p, false), here) || !fits(small_turns(p, true), here))
    return "has no room for so large a W_hh: it must fit in the shared memory of all multiprocessors";
  return nullptr;
}

int64_t persistent_forward_workspace_cuda(const RecurrenceParams& p) {
  return turns_workspace(p, takes_large(p, room(), false), false, false);
}
int persistent_forward_cuda(const RecurrenceParams& p, dlops_stream stream) {
  return with_dtype(
      p.dtype, [&](auto* t) { return turns_forward<std::remove_pointer_t<decltype(t)>, true>(p, stream); });
}

int64_t persistent_backward_workspace_cuda(const RecurrenceBackwardParams& p) {
  return turns_workspace(p, takes_large(p, room(), true), true, false);
}
int persistent_backward_cuda(const RecurrenceBackwardParams& p, dlops_stream stream) {
  const int error = with_dtype(
      p.dtype, [&](auto* t) { return turns_backward<std::remove_pointer_t<decltype(t)>, true>(p, stream); });
  return error == cudaSuccess && p.h_before ? h_before_cuda(p, stream) : error;
}

}  // namespace dlops
