// The barrier of a whole grid. A header of its own: cooperative_groups.h takes long to compile.
#pragma once
#include "ptx.h"

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#endif

namespace dlops::ptx {

// Needs Launch::cooperative: every block of the grid is on the device at once.
DLOPS_DEVICE void grid_sync(DLOPS_LOC_ONLY) {
  DLOPS_PTX(75, cooperative_groups::this_grid().sync(), simt::grid_sync(loc));
}

}  // namespace dlops::ptx
