#include "launch_turns.h"

namespace dlops::lstm {

template int turns_forward<__nv_bfloat16, false>(const RecurrenceParams&, dlops_stream);

}  // namespace dlops::lstm
