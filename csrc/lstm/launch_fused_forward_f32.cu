#include "launch_turns.h"

namespace dlops::lstm {

template int turns_forward<float, false>(const RecurrenceParams&, dlops_stream);

}  // namespace dlops::lstm
