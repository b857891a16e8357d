#include "launch_gates_backward.h"

namespace dlops::lstm {

template int gates_backward_of<float>(const GatesBackwardParams&, dlops_stream);

}  // namespace dlops::lstm
