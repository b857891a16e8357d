#include "../cpu/isa.h"
#include "cpu.h"

namespace dlops {

const MathCpu& math_cpu() { return DLOPS_CHOOSE(math); }

}  // namespace dlops
