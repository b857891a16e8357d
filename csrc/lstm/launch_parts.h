// The launchers, one group per .cu file so that they compile side by side. Use the table in launch.h.
#pragma once
#include "launch.h"

namespace dlops {

const char* cells_refuses_cuda(const RecurrenceProblem&);  // launch_cells.cu
int64_t cells_forward_workspace_cuda(const RecurrenceParams&);
int cells_forward_cuda(const RecurrenceParams&, dlops_stream);
int64_t cells_backward_workspace_cuda(const RecurrenceBackwardParams&);
int cells_backward_cuda(const RecurrenceBackwardParams&, dlops_stream);
int h_before_cuda(const RecurrenceBackwardParams&, dlops_stream);

const char* fused_refuses_cuda(const RecurrenceProblem&);  // launch_fused*.cu
int64_t fused_forward_workspace_cuda(const RecurrenceParams&);
int fused_forward_cuda(const RecurrenceParams&, dlops_stream);
int64_t fused_backward_workspace_cuda(const RecurrenceBackwardParams&);
int fused_backward_cuda(const RecurrenceBackwardParams&, dlops_stream);

const char* persistent_refuses_cuda(const RecurrenceProblem&);  // launch_persistent*.cu
int64_t persistent_forward_workspace_cuda(const RecurrenceParams&);
int persistent_forward_cuda(const RecurrenceParams&, dlops_stream);
int64_t persistent_backward_workspace_cuda(const RecurrenceBackwardParams&);
int persistent_backward_cuda(const RecurrenceBackwardParams&, dlops_stream);

int gates_cuda(const GatesParams&, dlops_stream);  // launch_gates.cu
int gates_backward_cuda(const GatesBackwardParams&, dlops_stream);

}  // namespace dlops
