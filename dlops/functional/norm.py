"""GroupNorm, LayerNorm and RMSNorm with what usually surrounds them: SiLU, per-sample scale and shift, residual addition.

float32, float16 and bfloat16, statistics and arithmetic in float32; weight, bias, scale and shift float32 or in the
input's dtype. float64, and whatever else our kernels do not take, runs as torch's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend
from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels, ops
from dlops._ops.norm import GroupNorm, RowNorm, compose_group_norm, compose_row_norm
from dlops.functional._checks import DTYPES, check_optional, supported_tensor

#: On the CPU a call of our op costs more than one of torch's own: below this many elements torch is the faster one, for a
#: call that asks for nothing else (residual, scale, a variant, ...).
SMALL = {"group_norm": 1 << 20, "group_norm_silu": 1 << 14, "layer_norm": 1 << 17, "rms_norm": 0}


def _unsupported(input: Tensor, others: Sequence[Tensor | None]) -> str | None:
    """Why our kernel cannot take these tensors; None if it can."""
    for t in others:
        if t is not None and t.dtype is not input.dtype and t.dtype is not torch.float32:
            return f"a parameter of {t.dtype} with an input of {input.dtype}"
    reason = supported_tensor(input, others, has_cuda_kernels)
    if reason is None and transforming():
        return "inside a torch.func transform or forward-mode AD"
    return reason


def _needs_grad(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """torch's rule: under autocast the norms run in float32 on CUDA; on the CPU they take what comes."""
    if tensors[0].is_cuda and torch.is_autocast_enabled("cuda"):
        return tuple(t.float() if t is not None and t.dtype in DTYPES else t for t in tensors)
    return tensors


def _per_sample(name: str, value: Tensor | None, input: Tensor) -> Tensor | None:
    """scale or shift as [N, C]; [N, C, 1, ...] is the same."""
    if value is None:
        return None
    n, c = input.shape[:2]
    if tuple(value.shape[:2]) != (n, c) or value.numel() != n * c:
        raise ValueError(f"group_norm: {name} has shape {list(value.shape)}, expected [{n}, {c}]")
    return value.reshape(n, c)


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
    out: Tensor | None = None,
    variant: str | None = None,
) -> Tensor:
    """``torch.nn.functional.group_norm``, then ``* (1 + scale) + shift`` and SiLU in the same pass.

    GroupNorm: Wu & He 2018, equations 1-4. Scale and shift per sample and channel: the adaptive group norm of Dhariwal &
    Nichol 2021, section 3. One mean and variance per sample and group, by Chan's merge of two-pass pieces: a large mean
    costs no accuracy, and neither batch size nor thread count changes a bit.

    Args:
        input: [N, C, *], contiguous or channels_last (any rank); other layouts are made contiguous first.
        num_groups: divides C.
        weight, bias: [C] or None.
        eps: added to the variance.
        activation: None or "silu".
        scale, shift: [N, C] (or [N, C, 1, ...]) or None.
        out: receives the result; the shape, dtype and memory layout of `input`, which it may be. Not differentiable.
        variant: "naive" or "fused" (the default).

    Returns:
        Tensor: like input.

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes, devices or values that do not fit, named.
    """
    plain = scale is None and shift is None and variant is None and out is None
    small = SMALL["group_norm" if activation is None else "group_norm_silu"]
    if plain and activation in (None, "silu") and _is_small(input, small) and input.numel() != num_groups:
        y = torch.group_norm(input, num_groups, weight, bias, eps, True)
        return y if activation is None else F.silu(y)
    check_optional(
        "group_norm", ("input", input), ("weight", weight), ("bias", bias), ("scale", scale), ("shift", shift), ("out", out)
    )
    if activation not in (None, "silu"):
        raise ValueError(f'group_norm: activation must be None or "silu": got {activation!r}')
    silu = activation is not None
    if input.dim() < 2:
        raise ValueError(f"group_norm: input must be [N, C, ...]: got shape {list(input.shape)}")
    if num_groups < 1 or input.shape[1] % num_groups:
        raise ValueError(f"group_norm: num_groups must divide the {input.shape[1]} channels of input: got {num_groups}")
    if input.numel() == num_groups:
        raise ValueError(f"group_norm: input has one value per group, whose variance is 0: got shape {list(input.shape)}")
    scale, shift = _per_sample("scale", scale, input), _per_sample("shift", shift, input)
    input, weight, bias, scale, shift = _autocast(input, weight, bias, scale, shift)
    tensors = (input, weight, bias, scale, shift)
    needs_grad = _needs_grad(tensors)
    if out is not None and needs_grad:
        raise RuntimeError("group_norm: out= is not differentiable, but an input requires grad")

    def plan(use: bool, reason: str) -> Plan:
        n = input.numel()
        flops, traffic = n * (8 + 2 * (scale is not None) + 20 * silu), 2 * n * input.element_size()
        return make_plan("group_norm", use, reason, device=input.device, variant=variant, flops=flops, bytes=traffic)

    slower = _slower(input, small) if plain else None
    if not choose("group_norm", _unsupported(input, tensors[1:]), plan, slower):
        y = compose_group_norm(*tensors, num_groups, eps, silu)
        return y if out is None else out.copy_(y)
    if out is not None:
        ops.group_norm_out.default(*tensors, num_groups, eps, silu, variant or "", out)
        return out
    if needs_grad:
        return GroupNorm.apply(*tensors, num_groups, eps, silu, variant or "")
    return ops.group_norm.default(*tensors, num_groups, eps, silu, variant or "")[0]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    variant: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``torch.nn.functional.layer_norm`` (Ba et al. 2016, section 3), of ``input + residual`` where one is given.

    Args:
        input: [..., *normalized_shape], any layout (made contiguous).
        weight, bias: normalized_shape, or None.
        eps: added to the variance.
        residual: like input. The sum is rounded to the input's dtype before it is normalised.
        variant: "naive" or "fused" (the default).

    Returns:
        Tensor like input; with a residual the pair (result, input + residual).

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes or devices that do not fit, named.
    """
    if residual is None and variant is None and _is_small(input, SMALL["layer_norm"]):
        return torch.layer_norm(input, normalized_shape, weight, bias, eps, True)
    return _row_norm("layer_norm", input, residual, weight, bias, normalized_shape, eps, variant)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    variant: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``torch.nn.functional.rms_norm`` (Zhang & Sennrich 2019, equation 4), of ``input + residual`` where one is given.

    Args:
        input: [..., *normalized_shape], any layout (made contiguous).
        weight: normalized_shape, or None.
        eps: added to the mean square; None: the machine epsilon of float32 (of float64 for such an input).
        residual: like input. The sum is rounded to the input's dtype before it is normalised.
        variant: "naive" or "fused" (the default).

    Returns:
        Tensor like input; with a residual the pair (result, input + residual).

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes or devices that do not fit, named.
    """
    if residual is None and variant is None and _is_small(input, SMALL["rms_norm"]):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return _row_norm("rms_norm", input, residual, weight, None, normalized_shape, eps, variant)


def _row_norm(
    op: str,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float | None,
    variant: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    rms = op == "rms_norm"
    check_optional(op, ("input", input), ("residual", residual), ("weight", weight), ("bias", bias))
    shape, dims = tuple(normalized_shape), len(normalized_shape)
    if dims < 1 or input.shape[-dims:] != shape:
        raise ValueError(f"{op}: input has shape {list(input.shape)}, which does not end in normalized_shape {list(shape)}")
    if residual is not None and residual.shape != input.shape:
        raise ValueError(f"{op}: residual has shape {list(residual.shape)}, expected {list(input.shape)}")
    input, residual, weight, bias = _autocast(input, residual, weight, bias)
    tensors = (input, residual, weight, bias)

    def plan(use: bool, reason: str) -> Plan:
        n = input.numel()
        flops, traffic = n * (5 if rms else 8), n * input.element_size() * (2 if residual is None else 4)
        return make_plan("row_norm", use, reason, device=input.device, variant=variant, flops=flops, bytes=traffic)

    unsupported = _unsupported(input, tensors[1:])
    if unsupported is None and residual is not None and residual.dtype is not input.dtype:
        unsupported = f"a residual of {residual.dtype} with an input of {input.dtype}"
    slower = None
    if op == "layer_norm" and residual is not None and variant is None and input.is_cpu:
        slower = "LayerNorm of a sum on the CPU: a second output costs more than the pass it saves"
    if residual is None and variant is None:
        slower = _slower(input, SMALL[op])
        if slower is None and input.is_cpu and input.numel() >= 32768 and math.prod(shape) < 64:
            slower = f"rows of {math.prod(shape)} elements: the sums across lanes cost more than the row"
    if not choose(op, unsupported, plan, slower):
        return compose_row_norm(*tensors, shape, eps, rms)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    if _needs_grad(tensors):
        return RowNorm.apply(*tensors, dims, eps, rms, variant or "")
    if residual is None:
        return ops.row_norm.default(input, weight, bias, dims, eps, rms, variant or "")[0]
    y, _, total = ops.add_row_norm.default(*tensors, dims, eps, rms, variant or "")
    return y, total


def _is_small(input: Tensor, small: int) -> bool:
    """Whether the call is all overhead: torch's own function is then one step away."""
    return (
        type(input) is Tensor
        and input.numel() < small
        and input.is_cpu
        and _backend._current == "auto"
        and _backend._recorder is None
    )


def _slower(input: Tensor, small: int) -> str | None:
    if input.numel() < small and input.is_cpu:
        return f"{input.numel()} elements: below {small} the call itself costs more than torch's"
    return None
