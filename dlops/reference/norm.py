"""Plain PyTorch twins of the norm ops: the specification, differentiable to any order, in float32 or float64.

float16 and bfloat16 inputs are computed in float32 and rounded once, at the end. Same signatures as in
``dlops.functional``, without ``variant`` and ``out``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _compute(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """GroupNorm (Wu & He 2018, equations 1-4), then ``* (1 + scale) + shift`` per sample and channel (adaptive group norm:
    Dhariwal & Nichol 2021, section 3), then SiLU.

    Args:
        input: [N, C, ...]. weight, bias: [C]. scale, shift: [N, C].
        activation: None or "silu".
    """
    x = _compute(input, input)
    n, c = x.shape[:2]
    grouped = x.reshape(n, num_groups, -1)
    mean = grouped.mean(dim=2, keepdim=True)
    variance = (grouped - mean).square().mean(dim=2, keepdim=True)  # biased
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)

    per_channel = (1, c) + (1,) * (x.dim() - 2)
    per_sample = (n, c) + (1,) * (x.dim() - 2)
    if weight is not None:
        y = y * _compute(weight, x).reshape(per_channel)
    if bias is not None:
        y = y + _compute(bias, x).reshape(per_channel)
    if scale is not None:
        y = y * (1 + _compute(scale, x).reshape(per_sample))
    if shift is not None:
        y = y + _compute(shift, x).reshape(per_sample)
    if activation == "silu":
        y = y * torch.sigmoid(y)
    return y.to(input.dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm (Ba et al. 2016, section 3) of ``input``, or of ``input + residual`` rounded to the input's dtype.

    Args:
        input, residual: [..., *normalized_shape]. weight, bias: [*normalized_shape].

    Returns:
        The result; with a residual also ``input + residual``.
    """
    total = input if residual is None else input + residual
    x = _compute(total, total)
    dims = tuple(range(-len(normalized_shape), 0))
    mean = x.mean(dim=dims, keepdim=True)
    variance = (x - mean).square().mean(dim=dims, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps)
    if weight is not None:
        y = y * _compute(weight, x)
    if bias is not None:
        y = y + _compute(bias, x)
    y = y.to(input.dtype)
    return y if residual is None else (y, total)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm (Zhang & Sennrich 2019, equation 4) of ``input``, or of ``input + residual`` rounded to the input's dtype.

    Args:
        input, residual: [..., *normalized_shape]. weight: [*normalized_shape].
        eps: None: the machine epsilon of the type computed in, as in ``torch.nn.functional.rms_norm``.

    Returns:
        The result; with a residual also ``input + residual``.
    """
    total = input if residual is None else input + residual
    x = _compute(total, total)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    dims = tuple(range(-len(normalized_shape), 0))
    y = x * torch.rsqrt(x.square().mean(dim=dims, keepdim=True) + eps)
    if weight is not None:
        y = y * _compute(weight, x)
    y = y.to(input.dtype)
    return y if residual is None else (y, total)
