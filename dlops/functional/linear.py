"""The linear layer with what usually follows it: bias, a residual, an activation. Its kernels are those of convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend
from dlops._ops.conv import ACTIVATIONS
from dlops.functional._checks import check_optional, check_tensors
from dlops.functional.conv import NAMED, convolve


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None,
    residual: Tensor | None = None, variant: str | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.linear``, then ``activation(result + residual)`` in the same pass.

    Args:
        input: [..., K]. weight: [M, K]. bias: [M] or None.
        activation: None, "relu", "silu", "gelu" (by erf), "tanh" or "sigmoid".
        residual: [..., M], added before the activation.
        variant: "naive", "direct" or "gemm" on the CPU; "naive", "shared" or "implicit_gemm" on CUDA. None: the fastest.

    Returns:
        Tensor: [..., M].

    Raises:
        What ``torch.nn.functional.linear`` raises, and
        TypeError: an argument that must be a tensor is none.
        ValueError: an unknown activation or variant, a residual that does not fit.
    """
    if activation is None and residual is None and variant is None and _is_torchs(input):
        return F.linear(input, weight, bias)
    check_tensors("linear", ("input", input), ("weight", weight))
    check_optional("linear", ("bias", bias), ("residual", residual))
    if activation is not None and activation not in NAMED:
        raise ValueError(f"linear: activation must be None or one of {', '.join(map(repr, NAMED))}: got {activation!r}")
    forced = variant is not None or _backend._current == "dlops" or _backend._recorder is not None
    half = input.dtype is torch.float16 and input.is_cpu and _backend._current == "auto"  # torch has no fast kernel for it
    fits = input.dim() > 0 and weight.dim() == 2 and input.shape[-1] == weight.shape[1]
    if not (forced or half) or not fits or input.numel() == 0 or weight.numel() == 0:
        y = F.linear(input, weight, bias)
        if residual is not None:
            _check_residual(residual, y.shape)
            y = y + residual
        return ACTIVATIONS[activation or "none"](y)
    shape = (*input.shape[:-1], weight.shape[0])
    if residual is not None:
        _check_residual(residual, shape)
    # [..., K] is a 1-D image of one sample whose pixels are the rows, its channels side by side.
    rows = lambda t: None if t is None else t.reshape(-1, t.shape[-1]).t().unsqueeze(0)  # noqa: E731
    y = convolve(
        "linear", rows(input), weight.unsqueeze(-1), bias, 1, 0, 1, 1, None, activation, rows(residual), "zeros", variant, None,
        weight,
    )  # fmt: skip
    return y.squeeze(0).t().reshape(shape)


def _is_torchs(input: Tensor) -> bool:
    """A plain call that nobody forces or explains; float16 aside, where torch has no fast kernel, it is torch's."""
    return (
        _backend._current == "auto"
        and _backend._recorder is None
        and isinstance(input, Tensor)
        and input.dtype is not torch.float16
    )


def _check_residual(residual: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(residual.shape) != tuple(shape):
        raise ValueError(f"linear: residual has shape {list(residual.shape)}, expected {list(shape)}")
