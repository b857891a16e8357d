// The launchers, one group per .cu file so that they compile side by side. Use the table in launch.h.
#pragma once
#include "launch.h"

namespace dlops {

int attention_naive_cuda(const AttentionForwardParams&, dlops_stream);
int attention_online_cuda(const AttentionForwardParams&, dlops_stream);
int attention_tiled_cuda(const AttentionForwardParams&, dlops_stream);
int attention_pipelined_cuda(const AttentionForwardParams&, dlops_stream);
int attention_split_cuda(const AttentionForwardParams&, dlops_stream);
int64_t attention_naive_workspace(const AttentionForwardParams&);
int64_t attention_split_workspace(const AttentionForwardParams&);

namespace attention {  // `tiled` and `pipelined` by head dimension and type
int tiled_f16(const AttentionForwardParams&, dlops_stream);
int tiled_bf16(const AttentionForwardParams&, dlops_stream);
int pipelined_narrow_f16(const AttentionForwardParams&, dlops_stream);
int pipelined_narrow_bf16(const AttentionForwardParams&, dlops_stream);
int pipelined_broad_f16(const AttentionForwardParams&, dlops_stream);
int pipelined_broad_bf16(const AttentionForwardParams&, dlops_stream);
}  // namespace attention

int backward_naive_cuda(const AttentionBackwardParams&, dlops_stream);
int backward_cuda(const AttentionBackwardParams&, dlops_stream);
int64_t backward_workspace_cuda(const AttentionBackwardParams&);

int rotary_cuda(const RotaryParams&, dlops_stream);

}  // namespace dlops
