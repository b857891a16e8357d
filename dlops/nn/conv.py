"""Drop-in convolution modules: torch.nn's constructors, parameters, state_dict and initialisation, our kernels in ``forward``,
with an activation and a residual addition in the same kernel on request."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn as nn
from torch import Tensor

from dlops import functional
from dlops.reference.conv import ACTIVATIONS


def checked_activation(module: nn.Module, activation: str | None) -> str | None:
    if activation not in ACTIVATIONS:
        *names, last = (f'"{name}"' for name in ACTIVATIONS if name)
        kind = type(module).__name__
        raise ValueError(f"{kind}: activation must be None, {', '.join(names)} or {last}: got {activation!r}")
    return activation


class Activated(nn.Module):
    """Adds the keyword-only argument ``activation`` to the constructor of the torch.nn module beside it."""

    activation: str | None = None  # on the class: modules that `accelerate` swapped in have none of their own

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = checked_activation(self, activation)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows the whole constructor to `help`, and to tools that look for an argument (torch.nn.utils.skip_init)."""
        super().__init_subclass__(**kwargs)
        cls.__signature__ = None if "__init__" in vars(cls) else _with_activation(cls)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation else "")


def _with_activation(cls: type) -> inspect.Signature:
    theirs = next(kind for kind in cls.__mro__ if kind.__module__.startswith("torch.") and "__init__" in vars(kind))
    signature = inspect.signature(theirs)
    added = inspect.Parameter("activation", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
    *known, last = signature.parameters.values()
    position = [*known, added, last] if last.kind is inspect.Parameter.VAR_KEYWORD else [*known, last, added]
    return signature.replace(parameters=position)


class _Convolution(Activated):
    _function: Callable[..., Tensor]

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias, residual)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        return self._function(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups,
            activation=self.activation, residual=residual, padding_mode=self.padding_mode,
        )  # fmt: skip


class Conv1d(_Convolution, nn.Conv1d):
    """``torch.nn.Conv1d``; ``forward(input, residual)`` returns ``activation(conv(input) + bias + residual)``.

    Args:
        in_channels, out_channels, kernel_size, ...: as in ``torch.nn.Conv1d``. A padding_mode other than "zeros" needs no
            padded copy of the input.
        activation: None, "relu", "silu", "gelu", "tanh" or "sigmoid".

    Shape:
        input [N, C, L] or [C, L]; residual and output [N, O, L_out] or [O, L_out].

    Raises:
        ValueError: as ``torch.nn.Conv1d``; an unknown activation.
    """

    _function = staticmethod(functional.conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    """``torch.nn.Conv2d``; ``forward(input, residual)`` returns ``activation(conv(input) + bias + residual)``.

    Args and errors as :class:`Conv1d`; input [N, C, H, W] or [C, H, W].
    """

    _function = staticmethod(functional.conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    """``torch.nn.Conv3d``; ``forward(input, residual)`` returns ``activation(conv(input) + bias + residual)``.

    Args and errors as :class:`Conv1d`; input [N, C, D, H, W] or [C, D, H, W].
    """

    _function = staticmethod(functional.conv3d)


class ConvBiasAct(Conv2d):
    """Convolution, bias, activation and, with ``forward(input, residual)``, a residual addition before the activation, in one
    kernel: ``Conv2d(..., activation="relu")``, with the constructor of ``torch.nn.Conv2d``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = "relu",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype,
            activation=activation,
        )  # fmt: skip


class _Transposed(Activated):
    _function: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: list[int] | None = None, residual: Tensor | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for {type(self).__name__}")
        sizes = self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        output_padding = self._output_padding(input, output_size, *sizes)
        return self._function(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation,
            activation=self.activation, residual=residual,
        )  # fmt: skip


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d``; ``forward(input, output_size, residual)`` returns
    ``activation(conv_transpose(input) + bias + residual)``.

    Args:
        in_channels, out_channels, kernel_size, ...: as in ``torch.nn.ConvTranspose1d``.
        activation: None, "relu", "silu", "gelu", "tanh" or "sigmoid".

    Shape:
        input [N, C, L] or [C, L]; residual and output [N, O, L_out] or [O, L_out].

    Raises:
        ValueError: as ``torch.nn.ConvTranspose1d``; an unknown activation.
    """

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``; ``forward(input, output_size, residual)`` returns
    ``activation(conv_transpose(input) + bias + residual)``.

    Args and errors as :class:`ConvTranspose1d`; input [N, C, H, W] or [C, H, W].
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d``; ``forward(input, output_size, residual)`` returns
    ``activation(conv_transpose(input) + bias + residual)``.

    Args and errors as :class:`ConvTranspose1d`; input [N, C, D, H, W] or [C, D, H, W].
    """

    _function = staticmethod(functional.conv_transpose3d)


class LazyActivated(Activated):
    """As :class:`Activated`, beside the lazy modules of torch.nn, whose constructors take no further arguments."""

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = checked_activation(self, activation)


class LazyConv1d(LazyActivated, nn.LazyConv1d, Conv1d):
    """``torch.nn.LazyConv1d``; becomes a :class:`Conv1d` in its first forward."""

    cls_to_become = Conv1d


class LazyConv2d(LazyActivated, nn.LazyConv2d, Conv2d):
    """``torch.nn.LazyConv2d``; becomes a :class:`Conv2d` in its first forward."""

    cls_to_become = Conv2d


class LazyConv3d(LazyActivated, nn.LazyConv3d, Conv3d):
    """``torch.nn.LazyConv3d``; becomes a :class:`Conv3d` in its first forward."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(LazyActivated, nn.LazyConvTranspose1d, ConvTranspose1d):
    """``torch.nn.LazyConvTranspose1d``; becomes a :class:`ConvTranspose1d` in its first forward."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(LazyActivated, nn.LazyConvTranspose2d, ConvTranspose2d):
    """``torch.nn.LazyConvTranspose2d``; becomes a :class:`ConvTranspose2d` in its first forward."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(LazyActivated, nn.LazyConvTranspose3d, ConvTranspose3d):
    """``torch.nn.LazyConvTranspose3d``; becomes a :class:`ConvTranspose3d` in its first forward."""

    cls_to_become = ConvTranspose3d
