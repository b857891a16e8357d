#include "launch_turns.h"

namespace dlops::lstm {

template int turns_forward<float, true>(const RecurrenceParams&, dlops_stream);

}  // namespace dlops::lstm
