// From a tensor's device to the kernel: a family's CPU table, its CUDA launchers, or CUDA launchers in the simt runner.
#pragma once
#include "../emulation.h"
#include "empty.h"

namespace dlops::face {

// The tables of one family: cpu() for the instruction-set level in use; cuda is null where this build has none.
template <class Cpu, class Cuda>
struct Family {
  const char* name;
  const Cpu& (*cpu)();
  const Cuda* cuda;
};
#if DLOPS_WITH_CUDA
#define DLOPS_FAMILY(name) (::dlops::face::Family{#name, &name##_cpu, &name##_cuda})
#else
#define DLOPS_FAMILY(name) \
  (::dlops::face::Family{#name, &name##_cpu, static_cast<decltype(&name##_cuda)>(nullptr)})
#endif

// Launches what `pick` takes from a table of CUDA launchers, with the workspace that the kernel wants on like's device.
template <class Cuda, class Params, class Pick>
void launch(const char* op, const Cuda& table, const Tensor& like, Params& p, Pick pick, void* stream) {
  const auto kernel = pick(table);  // first: it may write what the workspace depends on into p
  OptionalTensor workspace;
  if constexpr (requires { table.workspace(p); }) {
    if (const int64_t floats = table.workspace(p)) {
      workspace = new_floats(like, {floats});
      p.workspace = static_cast<float*>(workspace->mutable_data_ptr());
    }
  }
  check_launch(op, kernel(p, stream));
}

// Runs the kernel that `pick` takes from the table of like's device; on a GPU with the device guard and the current stream.
template <class Cpu, class Cuda, class Params, class Pick>
void run(const char* op, const Family<Cpu, Cuda>& family, const Tensor& like, Params& p, Pick pick) {
  p.threads = threads();
  if (like.is_cpu()) {
    if (const void* table = emulated(family.name))
      return launch(op, *static_cast<const Cuda*>(table), like, p, pick, nullptr);
    return pick(family.cpu())(p);
  }
  if (!like.is_cuda() || !family.cuda)
    refuse(op, "the tensors are on ", device_of(like), ", which this build of dlops has no kernels for");
  torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  launch(op, *family.cuda, like, p, pick, current_stream(like));
}

}  // namespace dlops::face
