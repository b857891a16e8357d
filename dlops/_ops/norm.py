"""The norm ops for autograd and for fake tensors. First derivatives are kernels; a second derivative, or a first one under
a torch.func transform, differentiates torch's own composition of the same formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dlops._library import ops
from dlops._ops.derivatives import composes, derive

# ---- the same formulas in torch's ops: what runs where our kernels do not ----


def compose_group_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    y = F.group_norm(input, groups, weight, bias, eps)
    if scale is not None or shift is not None:
        shape = (*input.shape[:2], *(1,) * (input.dim() - 2))
        if scale is not None:
            y = y * (1 + scale.reshape(shape))
        if shift is not None:
            y = y + shift.reshape(shape)
        y = y.to(input.dtype)  # a float32 scale over a bfloat16 input promotes; the kernel's output does not
    return F.silu(y) if silu else y


def compose_row_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    eps: float | None,
    rms: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    total = input if residual is None else input + residual
    y = F.rms_norm(total, shape, weight, eps) if rms else F.layer_norm(total, shape, weight, bias, eps)
    return y if residual is None else (y, total)


def _spread(grads: Sequence[Tensor], needs: Sequence[bool], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The computed gradients at the positions of the inputs that need them, in the inputs' dtypes."""
    found = iter(grads)
    return [next(found).to(t.dtype) if need and t is not None else None for need, t in zip(needs, inputs)]


class GroupNorm(Function):
    """y = dlops::group_norm(x, weight, bias, scale, shift, groups, eps, silu, variant)[0]"""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, shift, groups, eps, silu, variant):
        y, stats = ops.group_norm.default(x, weight, bias, scale, shift, groups, eps, silu, variant)
        ctx.save_for_backward(x, weight, bias, scale, shift, stats)
        ctx.options = groups, eps, silu, variant
        return y

    @staticmethod
    def backward(ctx, dy):
        *inputs, stats = ctx.saved_tensors
        groups, eps, silu, variant = ctx.options
        needs = ctx.needs_input_grad[:5]
        if composes(dy):
            grads = derive(lambda *t: compose_group_norm(*t, groups, eps, silu), inputs, needs, [dy])
        else:
            found = ops.group_norm_backward.default(dy, *inputs, stats, groups, silu, [int(need) for need in needs], variant)
            grads = _spread(found, needs, inputs)
        return *grads, None, None, None, None


class RowNorm(Function):
    """y of dlops::row_norm, or (y, x + residual) of dlops::add_row_norm"""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, dims, eps, rms, variant):
        ctx.options = dims, eps, rms, variant
        ctx.set_materialize_grads(False)
        if residual is None:
            y, stats = ops.row_norm.default(x, weight, bias, dims, eps, rms, variant)
            ctx.save_for_backward(x, weight, bias, stats)
            return y
        y, stats, total = ops.add_row_norm.default(x, residual, weight, bias, dims, eps, rms, variant)
        ctx.save_for_backward(total, weight, bias, stats)
        return y, total

    @staticmethod
    def backward(ctx, dy, dsum=None):
        s, weight, bias, stats = ctx.saved_tensors
        dims, eps, rms, variant = ctx.options
        of_x, of_residual, of_weight, of_bias = ctx.needs_input_grad[:4]
        needs = (of_x or of_residual, of_weight, of_bias)
        inputs = (s, weight, bias)
        if dy is None:  # only the sum was used
            grads = [dsum, None, None]
        elif composes(dy, dsum):
            # d/ds of (y, s): x and residual enter through s alone.
            shape = s.shape[s.dim() - dims :]
            compose = lambda s, w, b: (compose_row_norm(s, None, w, b, shape, eps, rms), s)  # noqa: E731
            grads = derive(compose, inputs, needs, [dy, dsum])
        else:
            found = ops.row_norm_backward.default(dy, dsum, s, weight, stats, dims, rms, [int(need) for need in needs], variant)
            grads = _spread(found, needs, inputs)
        ds, dweight, dbias = grads
        return ds if of_x else None, ds if of_residual else None, dweight, dbias, None, None, None, None


# ---- fake tensors: shapes, dtypes and strides as in csrc/norm/ops.cpp ----


def _group_output(x: Tensor) -> Tensor:
    n, c, *spatial = x.shape
    strides, step = [0] * x.dim(), c  # of the order N, spatial, C
    strides[1] = 1
    for i in range(x.dim() - 1, 1, -1):
        strides[i] = step
        step *= x.shape[i]
    strides[0] = step
    last = all(size <= 1 or have == want for size, have, want in zip(x.shape, x.stride(), strides))
    if x.is_contiguous() or last:
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("dlops::group_norm")
def _(x, weight, bias, scale, shift, groups, eps, silu, variant):
    return _group_output(x), x.new_empty((2, x.shape[0], groups), dtype=torch.float32)


@torch.library.register_fake("dlops::group_norm_out")
def _(x, weight, bias, scale, shift, groups, eps, silu, variant, out):
    return None


@torch.library.register_fake("dlops::group_norm_backward")
def _(dy, x, weight, bias, scale, shift, stats, groups, silu, needs, variant):
    n, c = x.shape[:2]
    made = [_group_output(x)] if needs[0] else []
    return made + [
        x.new_empty(shape, dtype=torch.float32) for shape, need in zip(((c,), (c,), (n, c), (n, c)), needs[1:]) if need
    ]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _row_stats(x: Tensor, dims: int, rms: bool) -> Tensor:
    rows = 1
    for size in x.shape[: x.dim() - dims]:
        rows = rows * size
    return x.new_empty((1 if rms else 2, rows), dtype=torch.float32)


@torch.library.register_fake("dlops::row_norm")
def _(x, weight, bias, dims, eps, rms, variant):
    return _like(x), _row_stats(x, dims, rms)


@torch.library.register_fake("dlops::add_row_norm")
def _(x, residual, weight, bias, dims, eps, rms, variant):
    return _like(x), _row_stats(x, dims, rms), _like(x)


@torch.library.register_fake("dlops::row_norm_backward")
def _(dy, dsum, s, weight, stats, dims, rms, needs, variant):
    shape = s.shape[s.dim() - dims :]
    made = [_like(s)] if needs[0] else []
    return made + [s.new_empty(shape, dtype=torch.float32) for need in needs[1:] if need]
