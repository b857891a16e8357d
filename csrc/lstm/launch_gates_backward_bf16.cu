#include "launch_gates_backward.h"

namespace dlops::lstm {

template int gates_backward_of<__nv_bfloat16>(const GatesBackwardParams&, dlops_stream);

}  // namespace dlops::lstm
