#include "launch_turns.h"

namespace dlops::lstm {

template int turns_backward<float, true>(const RecurrenceBackwardParams&, dlops_stream);

}  // namespace dlops::lstm
