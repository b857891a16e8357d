// The element types that every kernel family takes. Kernels never see torch; the torch face maps its types to these.
#pragma once

namespace dlops {

enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2 };

constexpr int bytes_of(Dtype t) { return t == Dtype::f32 ? 4 : 2; }

}  // namespace dlops
