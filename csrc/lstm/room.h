// The current device's room for a grid that stays, and the launchers of launch_turns.h by element type.
#pragma once
#include "../cuda/vec.h"
#include "launch_parts.h"
#include "turns.h"

namespace dlops::lstm {

inline Room room() {
#if defined(__CUDACC__)
  int device = 0, processors = 1, shared = 0, cooperative = 0, major = 0;
  const auto ask = [&](int& value, cudaDeviceAttr what) { cudaDeviceGetAttribute(&value, what, device); };
  if (cudaGetDevice(&device) != cudaSuccess) return {1, 0, false, false};
  ask(processors, cudaDevAttrMultiProcessorCount);
  ask(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(cooperative, cudaDevAttrCooperativeLaunch);
  ask(major, cudaDevAttrComputeCapabilityMajor);
  return {processors, shared, cooperative != 0, major >= 8};
#else
  return {8, 227 * 1024, true, true};  // the simt runner emulates small grids
#endif
}

// resident: `persistent`, else `fused_cell`. Defined in launch_turns.h, instantiated in launch_{persistent,fused}_*.cu.
template <class T, bool resident>
int turns_forward(const RecurrenceParams&, dlops_stream);
template <class T, bool resident>
int turns_backward(const RecurrenceBackwardParams&, dlops_stream);

// What neither rung has.
inline const char* turns_refuse(const RecurrenceProblem& p, const Room& room) {
  if (p.norm_weight || p.cell_weight) return "has no LayerNorm";
  if (p.projects()) return "has no projection";
  if (p.dtype != Dtype::f32 && !room.tensor_cores)
    return "needs a GPU of compute capability 8.0 or later for 16-bit elements";
  if (p.hidden * p.gates() >= 1 << 25) return "takes fewer than 2^25 / G units";
  return nullptr;
}

inline int64_t turns_workspace(const RecurrenceProblem& p, bool large, bool backward, bool packs) {
  const Turns t = large ? turns_of<LargeTile>(p, backward) : small_turns(p, backward);
  return workspace_of(p, t, packs);
}

}  // namespace dlops::lstm
