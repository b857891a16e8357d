"""Where torch's recurrent functions are the faster ones. Measured on a Zen 4; see csrc/lstm/README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Multiplications of a layer, below which a call is mostly what Python adds to it.
SMALL = 1 << 20
#: Steps below which torch's loop over them costs less than that, in inference and in training. (Its LSTM is no loop.) The
#: modules ask before anything else, or asking would cost what it saves.
FEW_STEPS = {"gru": (2, 2), "rnn_tanh": (12, 4), "rnn_relu": (12, 4)}


def is_brief(cell: str, input: Tensor, steps: int, hidden: int, needs_grad: bool) -> bool:
    """Whether a call on the CPU is all overhead, torch's the smaller one."""
    if steps >= FEW_STEPS.get(cell, (0, 0))[needs_grad] or not input.is_cpu:
        return False
    return input.numel() * hidden * 6 < SMALL


def slower(
    cell: str, input: Tensor, layers: Sequence[Sequence[Tensor | None]], batch_sizes: Tensor | None, needs_grad: bool,
    train: bool, cuda: bool, cast: bool,
) -> str | None:  # fmt: skip
    """Why torch's network is the faster one; None: ours is."""
    if cuda:  # in eval mode cuDNN has no backward pass
        return None if needs_grad and not train else "on CUDA ours is not measured yet"
    w_hr = layers[0][4]
    rows = input.shape[0] * (input.shape[1] if batch_sizes is None else 1)
    steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    if cast and (cell == "lstm" or steps < 16):
        return "torch keeps the weights that autocast cast, we do not"
    if cell == "lstm":
        onednn = batch_sizes is None and w_hr is None
        if needs_grad and input.dtype is torch.bfloat16 and onednn and rows > 4 * steps:
            return "our backward pass has no bfloat16 products, oneDNN's has"
        return None
    return None


def slower_cell(cell: str, input: Tensor, w_hh: Tensor, needs_grad: bool, cuda: bool) -> str | None:
    """Why torch's cell is the faster one; None: ours is."""
    if cuda:
        return "on CUDA ours is not measured yet"
    if needs_grad:
        return "torch records a cell's gradients in less time than we"
    if input.dtype is torch.float16 and input.shape[0] == 1 and w_hh.numel() >= 1 << 20:
        return "our packed weights are float32: twice the bytes of float16"
    if cell not in ("lstm", "gru") and w_hh.shape[1] < 256:
        return "a plain cell is two products: torch calls them with less overhead"
    return None
