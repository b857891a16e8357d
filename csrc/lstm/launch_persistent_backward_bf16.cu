#include "launch_turns.h"

namespace dlops::lstm {

template int turns_backward<__nv_bfloat16, true>(const RecurrenceBackwardParams&, dlops_stream);

}  // namespace dlops::lstm
