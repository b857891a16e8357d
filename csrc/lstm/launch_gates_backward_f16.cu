#include "launch_gates_backward.h"

namespace dlops::lstm {

template int gates_backward_of<__half>(const GatesBackwardParams&, dlops_stream);

}  // namespace dlops::lstm
