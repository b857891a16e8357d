// The fused forward pass on the CPU: see forward.h. Compiled once per instruction-set level.
#include "cpu_parts.h"
#include "forward.h"

namespace dlops::DLOPS_PARTS {

const char* fused_refuses(const RecurrenceProblem& p) {
  if (p.cell == Cell::gru && p.projects()) return "has no projection of gru";
  if (p.cell != Cell::lstm && p.cell_weight) return "normalises the cell state of lstm only";
  return nullptr;
}

int64_t packed_floats(const PackParams& p) {
  return FloatProduct::packed_floats({p.gates, p.units, p.depth});
}

void pack(const PackParams& p) {
  const Panels w{p.gates, p.units, p.depth};
  FloatProduct::pack(w, p.dtype, p.w, 0, w.groups(), p.packed);
}

void fused_forward(const RecurrenceParams& p) { run_forward_of<FloatProduct>(p); }

}  // namespace dlops::DLOPS_PARTS
