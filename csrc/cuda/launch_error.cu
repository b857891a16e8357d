#include "launch_error.h"

#include <cuda_runtime.h>

namespace dlops {

const char* cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace dlops
