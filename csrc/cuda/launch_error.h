// What the torch face needs of CUDA, without CUDA's headers.
#pragma once

namespace dlops {

using dlops_stream = void*;  // a cudaStream_t

// The text of a launcher's error code (a cudaError_t; 0 is none).
const char* cuda_error_string(int error);

}  // namespace dlops
