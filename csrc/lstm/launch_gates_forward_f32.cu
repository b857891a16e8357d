#include "launch_gates_forward.h"

namespace dlops::lstm {

template int gates_of<float>(const GatesParams&, dlops_stream);

}  // namespace dlops::lstm
