#include "launch_turns.h"

namespace dlops::lstm {

template int turns_forward<__half, true>(const RecurrenceParams&, dlops_stream);

}  // namespace dlops::lstm
