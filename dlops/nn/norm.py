"""Drop-in norm modules: torch.nn's constructors, parameters, state_dict and initialisation, our kernels in ``forward``."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from torch import Tensor

from dlops import functional


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm``, with SiLU and per-sample scale and shift in the same kernel on request.

    Args:
        num_groups, num_channels, eps, affine, device, dtype (and bias, where torch has it): as in ``torch.nn.GroupNorm``.
        activation: None or "silu", applied to the result.

    Shape:
        input [N, C, *]; scale, shift [N, C] (or [N, C, 1, ...]); output like input:
        ``activation(norm(input) * (1 + scale) + shift)``.

    Raises:
        ValueError: num_groups does not divide num_channels; an unknown activation.
    """

    activation: str | None = None  # on the class: modules that `accelerate` swapped in have none of their own

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        if activation not in (None, "silu"):
            raise ValueError(f'GroupNorm: activation must be None or "silu": got {activation!r}')
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **kwargs)
        self.activation = activation

    def forward(self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation, scale=scale, shift=shift
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation else "")


class GroupNormSiLU(GroupNorm):
    """``GroupNorm(..., activation="silu")``: GroupNorm and SiLU in one kernel, with the constructor of the former."""

    def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_groups, num_channels, *args, activation="silu", **kwargs)


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm``. With a residual, ``forward(input, residual)`` normalises their sum and returns
    ``(output, input + residual)``: the pre-norm transformer's add and norm in one pass."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return functional.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual
        )


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm``. With a residual, ``forward(x, residual)`` normalises their sum and returns
    ``(output, x + residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps, residual=residual)
