// The launchers, one group per .cu file so that they compile side by side. Use the table in launch.h.
#pragma once
#include "launch.h"

namespace dlops {

int64_t group_norm_workspace_cuda(const GroupNormParams&);
int group_norm_cuda(const GroupNormParams&, dlops_stream);
int group_norm_naive_cuda(const GroupNormParams&, dlops_stream);
int64_t group_norm_large_workspace(const GroupNormParams&);
int group_norm_large_cuda(const GroupNormParams&, dlops_stream);

int64_t group_norm_backward_workspace_cuda(const GroupNormBackwardParams&);
int group_norm_backward_cuda(const GroupNormBackwardParams&, dlops_stream);
int group_norm_backward_naive_cuda(const GroupNormBackwardParams&, dlops_stream);

int row_norm_cuda(const RowNormParams&, dlops_stream);
int row_norm_naive_cuda(const RowNormParams&, dlops_stream);

int64_t row_norm_backward_workspace_cuda(const RowNormBackwardParams&);
int row_norm_backward_cuda(const RowNormBackwardParams&, dlops_stream);
int row_norm_backward_naive_cuda(const RowNormBackwardParams&, dlops_stream);

}  // namespace dlops
