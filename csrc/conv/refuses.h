// Which kernel can take a problem: what the Python layer asks before it chooses.
#pragma once
#include <string>

#include "../api.h"
#include "params.h"

namespace dlops {

enum class ConvPass : int { forward, data, weight };

// Why this kernel of the level in use (cuda: of the CUDA build, or of the simt runner where it is installed) cannot take the
// problem, as the end of a sentence; empty: it can. Throws std::invalid_argument for an unknown name.
DLOPS_API std::string conv_refuses(bool cuda, ConvPass pass, const std::string& algorithm,
                                   const ConvProblem& p);

}  // namespace dlops
