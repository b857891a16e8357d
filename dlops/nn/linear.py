"""The drop-in for torch.nn.Linear, with an activation and a residual addition in the same kernel on request."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from dlops import functional
from dlops.nn.conv import Activated, LazyActivated


class Linear(Activated, nn.Linear):
    """``torch.nn.Linear``; ``forward(input, residual)`` returns ``activation(input @ weight.T + bias + residual)``.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        activation: None, "relu", "silu", "gelu", "tanh" or "sigmoid".

    Shape:
        input [..., I]; residual and output [..., O].

    Raises:
        ValueError: an unknown activation.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.linear(input, self.weight, self.bias, activation=self.activation, residual=residual)


class LazyLinear(LazyActivated, nn.LazyLinear, Linear):
    """``torch.nn.LazyLinear``; becomes a :class:`Linear` in its first forward."""

    cls_to_become = Linear
