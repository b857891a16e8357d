"""Functions with the signatures of ``torch.nn.functional``; what torch lacks comes as keyword-only arguments.

``variant=`` picks a rung of a kernel's ladder everywhere; the default is the fastest.
"""

from dlops.functional.attention import (
    attention_decode,
    attention_varlen,
    merge_attention,
    scaled_dot_product_attention,
)
from dlops.functional.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from dlops.functional.diffusion import STEP_COLUMNS, add_noise, diffusion_step, randn
from dlops.functional.linear import linear
from dlops.functional.lstm import (
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    rnn_relu,
    rnn_relu_cell,
    rnn_tanh,
    rnn_tanh_cell,
)
from dlops.functional.norm import group_norm, layer_norm, rms_norm
from dlops.functional.rotary import apply_rotary

__all__ = [
    "STEP_COLUMNS",
    "add_noise",
    "apply_rotary",
    "attention_decode",
    "attention_varlen",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "diffusion_step",
    "group_norm",
    "gru",
    "gru_cell",
    "layer_norm",
    "linear",
    "lstm",
    "lstm_cell",
    "merge_attention",
    "randn",
    "rms_norm",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "scaled_dot_product_attention",
]
