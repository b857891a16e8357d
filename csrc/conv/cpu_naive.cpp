#include "cpu_parts.h"
#include "naive.h"

namespace dlops::DLOPS_PARTS {

const char* naive_forward_refuses(const ConvProblem&) { return nullptr; }
const char* naive_data_refuses(const ConvProblem&) { return nullptr; }
const char* naive_weight_refuses(const ConvProblem&) { return nullptr; }

void naive_forward(const ConvForwardParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) { naive_forward_of<T>(p); });
}
void naive_data(const ConvDataParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) { naive_data_of<T>(p); });
}
void naive_weight(const ConvWeightParams& p) {
  with_dtype(p.dtype, [&]<class T>(T*) { naive_weight_of<T>(p); });
}

}  // namespace dlops::DLOPS_PARTS
