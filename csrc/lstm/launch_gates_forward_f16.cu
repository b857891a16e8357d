#include "launch_gates_forward.h"

namespace dlops::lstm {

template int gates_of<__half>(const GatesParams&, dlops_stream);

}  // namespace dlops::lstm
