"""Where torch's recurrent functions are the faster ones. Measured; see csrc/lstm/README.md."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def slower(
    cell: str, input: Tensor, layers: Sequence[Sequence[Tensor | None]], batch_sizes: Tensor | None, needs_grad: bool,
    train: bool, cuda: bool,
) -> str | None:  # fmt: skip
    """Why torch's network is the faster one; None: ours is."""
    if cuda and (train or not needs_grad):  # in eval mode cuDNN has no backward pass
        return "on CUDA ours is not measured yet"
    return None


def slower_cell(cell: str, input: Tensor, w_hh: Tensor, needs_grad: bool, cuda: bool) -> str | None:
    """Why torch's cell is the faster one; None: ours is."""
    if cuda:
        return "on CUDA ours is not measured yet"
    return None
