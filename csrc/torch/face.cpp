#include "face.h"

#if DLOPS_WITH_CUDA
#include "../cuda/launch_error.h"
#endif

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace dlops::face {

void* current_stream(const Tensor& t) {
  if (!aoti_torch_get_current_cuda_stream)
    throw std::runtime_error(
        "dlops: got a CUDA tensor, but this torch has no aoti_torch_get_current_cuda_stream: install a CUDA "
        "build of torch, "
        "or link libdlops.so with -Wl,--no-as-needed -ltorch");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

void check_launch(const char* op, int error) {
  if (error == 0) return;
  std::string text = std::string(op) + ": CUDA error " + std::to_string(error);
#if DLOPS_WITH_CUDA
  text += std::string(": ") + cuda_error_string(error);
#endif
  throw std::runtime_error(text);
}

}  // namespace dlops::face

// The namespace torch.ops.dlops. Each family adds its ops as a fragment.
STABLE_TORCH_LIBRARY(dlops, m) { (void)m; }
