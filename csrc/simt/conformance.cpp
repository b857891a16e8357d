#include "conformance_mma.cuh"
#include "conformance_sync.cuh"
#include "conformance_tma.cuh"

namespace dlops::conformance {

std::vector<Case> conformance_cases() {
  std::vector<Case> all = synchronisation_cases();
  for (auto* part : {matrix_cases, tensor_copy_cases})
    for (Case& c : part()) all.push_back(std::move(c));
  return all;
}

}  // namespace dlops::conformance
