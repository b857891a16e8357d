"""Plain PyTorch twins of the convolutions and of Linear: the specification, differentiable to any order, in float32 or float64.

float16 and bfloat16 inputs are computed in float32 and rounded once, at the end. Nothing here calls torch's own convolution:
a convolution is a product of windows and weights, a transposed one is a convolution of the input with zeros between its
elements (Dumoulin & Visin 2016, sections 2 and 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = int | Sequence[int]  # one value for every spatial dimension, or one each

_GELU_SCALE = 0.5**0.5
ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "silu": lambda y: y * torch.sigmoid(y),
    "gelu": lambda y: y * 0.5 * (1 + torch.erf(y * _GELU_SCALE)),  # Hendrycks & Gimpel 2016, the exact one
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(input * weight + bias + residual)``, where ``*`` is the cross-correlation that torch calls convolution:

        y[n, o, q] = sum over c, k of w[o, c, k] x[n, g C/G + c, q stride - padding + k dilation]

    with g the group of filter o, and x continued beyond its edges as `padding_mode` says.

    Args:
        input: [N, C, *size] with one to three spatial dimensions, or [C, *size].
        weight: [O, C/G, *kernel]. bias: [O]. residual: like the result.
        stride, dilation: per dimension. padding: per dimension, on either side; "valid": 0; "same": so much that the result
            has the input's size, the odd one on the right.
        groups: G.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: a key of ACTIVATIONS.

    Returns:
        Tensor: [N, O, *out], without N where the input has none.
    """
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        residual = None if residual is None else residual[None]
        result = convolution(
            input[None], weight, bias, stride, padding, dilation, groups, padding_mode, activation, residual
        )
        return result[0]
    stride, dilation, kernel = _each(stride, dims), _each(dilation, dims), weight.shape[2:]
    x = _compute(input)
    for d, (before, after) in enumerate(_paddings(padding, kernel, dilation), start=2):
        x = _pad(x, d, before, after, padding_mode)
    y = _products(x, _compute(weight), stride, dilation, groups)
    return _finish(y, bias, residual, activation, channel_dim=1).to(input.dtype)


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The adjoint of `convolution` in its input, then ``activation(y + bias + residual)``.

    A convolution of stride 1, with the kernel flipped, of the input with stride - 1 zeros between its elements: padding of the
    convolution whose adjoint this is takes elements away here. output_padding adds to the end of each dimension, to tell apart
    the sizes that a stride maps to the same one.

    Args:
        input: [N, C, *size] or [C, *size]. weight: [C, O/G, *kernel]. bias: [O]. residual: like the result.

    Returns:
        Tensor: [N, O, *out], without N where the input has none; out = (size - 1) stride - 2 padding + dilation (kernel - 1) +
        output_padding + 1.
    """
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        residual = None if residual is None else residual[None]
        result = conv_transpose(
            input[None], weight, bias, stride, padding, output_padding, groups, dilation, activation, residual
        )
        return result[0]
    stride, padding, extra, dilation = (_each(value, dims) for value in (stride, padding, output_padding, dilation))
    x = _compute(input)
    for d in range(dims):
        reach = dilation[d] * (weight.shape[2 + d] - 1)  # what one element touches besides its own place
        x = _insert_zeros(x, 2 + d, stride[d])
        x = _pad(x, 2 + d, reach - padding[d], reach - padding[d] + extra[d], "zeros")
    c, o, *kernel = weight.shape  # [C, O/G, k] -> [O, C/G, k]: filters and channels change places within each group
    w = _compute(weight).reshape(groups, c // groups, o, *kernel).transpose(1, 2).reshape(groups * o, c // groups, *kernel)
    y = _products(x, w.flip(tuple(range(2, 2 + dims))), (1,) * dims, dilation, groups)
    return _finish(y, bias, residual, activation, channel_dim=1).to(input.dtype)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(input @ weight.T + bias + residual)``.

    Args:
        input: [..., I]. weight: [O, I] (or [I], for a result [...]). bias: [O]. residual: like the result.
    """
    y = _compute(input) @ _compute(weight).t()
    return _finish(y, bias, residual, activation, channel_dim=-1).to(input.dtype)


def _compute(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _each(value: Sizes, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _paddings(padding: Sizes | str, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Elements before and after, per dimension."""
    if padding == "same":
        reaches = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return [(reach // 2, reach - reach // 2) for reach in reaches]
    sides = _each(0 if isinstance(padding, str) else padding, len(kernel))  # "valid"
    return [(side, side) for side in sides]


def _pad(x: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    """x with so many elements more (or, where negative, fewer) at either end of `dim`."""
    size = x.shape[dim]
    if mode == "zeros":
        sides = [0, 0] * (x.dim() - 1 - dim) + [before, after]
        return F.pad(x, sides)
    at = torch.arange(-before, size + after, device=x.device)
    if mode == "replicate":
        at = at.clamp(0, size - 1)
    elif mode == "circular":
        at = at % size
    else:  # reflect: the edge is the mirror, and is not repeated
        at = (size - 1) - (at.abs() - (size - 1)).abs()
    return x.index_select(dim, at)


def _insert_zeros(x: Tensor, dim: int, stride: int) -> Tensor:
    """stride - 1 zeros between neighbours along `dim`."""
    spread = torch.stack([x, *[torch.zeros_like(x)] * (stride - 1)], dim=dim + 1).flatten(dim, dim + 1)
    return spread.narrow(dim, 0, (x.shape[dim] - 1) * stride + 1)


def _products(x: Tensor, w: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """The convolution without padding: x [N, C, *in], w [O, C/G, *kernel] -> [N, O, *out]."""
    windows = x
    for d, kernel in enumerate(w.shape[2:]):  # a view [N, C, *out, *kernel]: which window, and where in it
        windows = windows.unfold(2 + d, dilation[d] * (kernel - 1) + 1, stride[d])[..., :: dilation[d]]
    dims = w.dim() - 2
    out = windows.shape[2 : 2 + dims]
    windows = windows.flatten(2 + dims).flatten(2, 1 + dims)  # [N, C, Q, K]
    y = torch.einsum("ngcqk,gock->ngoq", windows.unflatten(1, (groups, -1)), w.flatten(2).unflatten(0, (groups, -1)))
    return y.flatten(1, 2).unflatten(2, out)


def _finish(y: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None, channel_dim: int) -> Tensor:
    if bias is not None:
        y = y + bias.to(y.dtype).reshape((-1,) + (1,) * (y.dim() - 2) if channel_dim == 1 else (-1,))
    if residual is not None:
        y = y + residual.to(y.dtype)
    return ACTIVATIONS[activation](y)
