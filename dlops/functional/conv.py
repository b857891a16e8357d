"""Convolutions with what usually follows them: bias, a residual, an activation."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend, _winograd
from dlops._backend import Plan, choose
from dlops._explain import make_plan
from dlops._library import _C, has_cuda_kernels, ops
from dlops._ops.conv import ACTIVATIONS, Convolution, compose_conv, flat, pack, run
from dlops.functional._checks import autocast, check_optional, check_tensors, uniform_tensors
from dlops.functional._conv import Decision, decide

Ints = int | tuple[int, ...]
NAMED = tuple(name for name in ACTIVATIONS if name != "none")

#: On the CPU a call of our op costs some microseconds more than one of torch's: below this many multiplications (as if the
#: stride were 1) torch is the faster one.
SMALL = 1 << 20
#: Floating-point operations of the forward pass, in training and without, below which the Python around our kernels (a backward
#: pass: 50 microseconds, a choice of kernels: 10) costs more than they save.
LIGHT, LIGHT_INFERENCE = 30_000_000, 12_000_000


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1,
    groups: int = 1, *, activation: str | None = None, residual: Tensor | None = None, padding_mode: str = "zeros",
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv1d`` of [N, C, L]; see :func:`conv2d`. Where our kernel runs, a view [N, C, L] of [N, L, C] gives
    another such view; torch's functions give a contiguous result."""
    return convolve(
        "conv1d", input, weight, bias, stride, padding, dilation, groups, None, activation, residual, padding_mode, variant, out
    )


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1,
    groups: int = 1, *, activation: str | None = None, residual: Tensor | None = None, padding_mode: str = "zeros",
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv2d``, then ``activation(result + residual)`` in the same pass.

    A cross-correlation (Dumoulin & Visin 2016, chapter 2): ``y[n, o, q] = sum_ck w[o, c, k] x[n, c, q stride - padding + k
    dilation]``. 3x3 kernels with stride 1 may be computed by Winograd's minimal filtering (Lavin & Gray 2015): see
    :class:`dlops.winograd` for what that means for the error.

    Args:
        input: [N, C, H, W] or [C, H, W], contiguous or channels_last; other layouts are copied first.
        weight: [O, C / groups, kh, kw]. bias: [O] or None.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``; padding may be "same" or "valid".
        activation: None, "relu", "silu", "gelu" (by erf), "tanh" or "sigmoid".
        residual: added before the activation; of the result's shape.
        padding_mode: "zeros", "reflect", "replicate" or "circular": how the input goes on past its edges.
        variant: "naive", "direct", "gemm" (1x1), "winograd", "winograd_f2", "depthwise" or "grouped" on the CPU; "naive",
            "shared", "winograd" (F(2x2)), "depthwise" or "implicit_gemm" on CUDA. None: the fastest.
        out: receives the result; of its shape and dtype, contiguous or channels_last. Not differentiable.

    Returns:
        Tensor: [N, O, H', W'] (or without N), channels_last where input or weight is, as torch's.

    Raises:
        What ``torch.nn.functional.conv2d`` raises for the same arguments, and
        TypeError: an argument that must be a tensor is none.
        ValueError: an unknown activation, padding_mode or variant; a variant that cannot compute this convolution; a residual or
        out that does not fit.
    """
    return convolve(
        "conv2d", input, weight, bias, stride, padding, dilation, groups, None, activation, residual, padding_mode, variant, out
    )


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1,
    groups: int = 1, *, activation: str | None = None, residual: Tensor | None = None, padding_mode: str = "zeros",
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv3d`` of [N, C, D, H, W]; see :func:`conv2d`."""
    return convolve(
        "conv3d", input, weight, bias, stride, padding, dilation, groups, None, activation, residual, padding_mode, variant, out
    )


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, activation: str | None = None, residual: Tensor | None = None,
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv_transpose1d`` of [N, C, L]; see :func:`conv_transpose2d`."""
    return convolve(
        "conv_transpose1d", input, weight, bias, stride, padding, dilation, groups, output_padding, activation, residual, "zeros",
        variant, out,
    )  # fmt: skip


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, activation: str | None = None, residual: Tensor | None = None,
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv_transpose2d``, then ``activation(result + residual)`` in the same pass.

    The adjoint in x of the convolution with the same weight (Dumoulin & Visin 2016, chapter 4).

    Args:
        input: [N, C, H, W] or [C, H, W]. weight: [C, O / groups, kh, kw]. bias: [O] or None.
        stride, padding, output_padding, groups, dilation: as in ``torch.nn.functional.conv_transpose2d``.
        activation, residual, variant, out: as in :func:`conv2d`.

    Returns:
        Tensor: [N, O, H', W'], H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.

    Raises:
        As :func:`conv2d`.
    """
    return convolve(
        "conv_transpose2d", input, weight, bias, stride, padding, dilation, groups, output_padding, activation, residual, "zeros",
        variant, out,
    )  # fmt: skip


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, *, activation: str | None = None, residual: Tensor | None = None,
    variant: str | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.conv_transpose3d`` of [N, C, D, H, W]; see :func:`conv_transpose2d`."""
    return convolve(
        "conv_transpose3d", input, weight, bias, stride, padding, dilation, groups, output_padding, activation, residual, "zeros",
        variant, out,
    )  # fmt: skip


def _known(sizes: Any) -> tuple[int, ...]:
    """A graph is compiled for the sizes that the choice of a kernel depends on: all but the batch."""
    return tuple(len(range(size)) for size in sizes)  # int(size) would leave a symbolic one symbolic


def _hashable(value: Any) -> Any:
    """An option as a constant: a list as a tuple; while a graph is compiled, a symbolic number as the one that it stands for."""
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(v) for v in value)
    if torch.compiler.is_compiling():
        return len(range(value)) if type(value) is int and value >= 0 else value
    return operator.index(value) if hasattr(value, "__index__") else value


def _machine(device: str) -> tuple[str, str]:
    """The device whose kernels run, and the CPU's instruction-set level: "simt" where its tensors go to the simt runner."""
    if device == "cpu" and _C.emulated("conv"):
        return "cuda", "simt"
    return device, _C.cpu_isa()


_machine._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile runs it instead of tracing it


def _is_channels_last(x: Tensor, w: Tensor) -> bool:
    """torch's rule for the result's layout: channels_last where input or weight is. In 1-D the input alone counts, for torch has
    no such weights."""
    if x.is_contiguous() and w.is_contiguous():
        return False
    return _suggests_channels_last(x) or (x.dim() > 3 and _suggests_channels_last(w))


def _suggests_channels_last(t: Tensor) -> bool:
    """Strides that grow C, W, H, D, N. Where sizes of 1 leave it open, the answer is no."""
    if t.is_contiguous() or t.shape[1] == 0:
        return False
    least = 0
    for d in (1, *range(t.dim() - 1, 1, -1)):
        if t.shape[d] == 0 or t.stride(d) < least:
            return False
        least = t.stride(d) * t.shape[d]
    return t.shape[0] < 2 or t.stride(0) >= least


def _where(x: Tensor, w: Tensor, variant: str | None) -> tuple[Any, ...]:
    """The fields of a Where."""
    grad = torch.is_grad_enabled()
    return (
        *_machine(x.device.type),
        _is_channels_last(x, w),
        _backend._current,
        variant,
        _winograd._current,
        grad and x.requires_grad,
        grad and w.requires_grad,
        1 if torch.compiler.is_compiling() or x.shape[0] < 4 else 4 if x.shape[0] < 8 else 8,
    )


def convolve(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    output_padding: Any,
    activation: str | None,
    residual: Tensor | None,
    padding_mode: str,
    variant: str | None,
    out: Tensor | None,
    owner: Tensor | None = None,
) -> Tensor:
    """owner: the parameter behind `weight`, where that is a view."""
    plain = activation is None and residual is None and padding_mode == "zeros"
    if plain and torch.jit.is_tracing():  # sizes are tensors there, and a choice made of them would be frozen
        return _theirs(op, input, weight, bias, stride, padding, dilation, groups, output_padding)
    key: Any = None
    simple = plain or (residual is None and padding_mode == "zeros" and activation in NAMED)
    if simple and variant is None and out is None and _is_free(input, weight):
        handed_over = _is_small(input, weight, groups, output_padding is not None)
        if not handed_over:
            key, handed_over = _key(op, input, weight, bias, stride, padding, dilation, groups, activation)
        if handed_over:
            y = _theirs(op, input, weight, bias, stride, padding, dilation, groups, output_padding)
            return y if activation is None else ACTIVATIONS[activation](y)
    check_tensors(op, ("input", input), ("weight", weight))
    check_optional(op, ("bias", bias), ("residual", residual), ("out", out))
    spatial = 1 if op == "linear" else int(op[-2])
    if input.dim() == spatial + 1 and weight.dim() == spatial + 2:
        one = lambda t: None if t is None else t.unsqueeze(0)  # noqa: E731
        y = convolve(
            op, one(input), weight, bias, stride, padding, dilation, groups, output_padding, activation, one(residual),
            padding_mode, variant, one(out), owner,
        )  # fmt: skip
        return y.squeeze(0) if out is None else out
    owner = weight if owner is None else owner
    input, weight, bias, residual = autocast(input, weight, bias, residual)
    dtypes = (input.dtype, weight.dtype) + (() if bias is None else (bias.dtype,))
    sizes = _known if torch.compiler.is_compiling() else tuple
    signature = (  # a Signature
        op, sizes(input.shape[1:]), sizes(weight.shape), None if bias is None else sizes(bias.shape), dtypes, _hashable(stride),
        _hashable(padding), _hashable(dilation), _hashable(groups), _hashable(output_padding), padding_mode, activation,
    )  # fmt: skip
    where = _where(input, weight, variant)
    try:
        d = decide(signature, where)
    except (RuntimeError, TypeError):
        if padding_mode == "zeros":  # torch's own words, about the tensors that came
            _theirs(op, input, weight, bias, stride, padding, dilation, groups, output_padding)
        raise
    shape = (input.shape[0], *d.result)
    for name, t in (("residual", residual), ("out", out)):
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(t.shape)}, expected {list(shape)}")
    if out is not None and out.dtype is not input.dtype:
        raise ValueError(f"{op}: out is {out.dtype}, expected {input.dtype}")
    tensors = (input, weight, bias, residual)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if out is not None and (needs_grad or (out.requires_grad and torch.is_grad_enabled())):
        raise RuntimeError(f"{op}: out= is not differentiable, but an input requires grad")

    def plan(use: bool, reason: str) -> Plan:
        kind = "conv_data" if d.geometry.transposed else "conv"
        traffic = input.element_size() * (input.numel() + weight.numel() + input.shape[0] * math.prod(d.result))
        work = d.flops * input.shape[0]
        return make_plan(kind, use, reason, device=torch.device(where[0]), variant=d.passes.result, flops=work, bytes=traffic)

    unsupported = uniform_tensors(input, (weight, bias, residual), has_cuda_kernels, "parameter") or d.unsupported
    if unsupported is None and input.numel() == 0 and input.shape[0] != 0:
        unsupported = "an input without channels"
    light = op == "conv2d" and _is_light(input, d, LIGHT if needs_grad else LIGHT_INFERENCE)
    slower = "so little to compute that the Python around our kernels costs more than they save"
    ours = choose(op, unsupported, plan, slower if light else d.slower)
    nothing_ours = light or d.passes[1:3] == ("", "") or not needs_grad or _backend._current == "torch"
    if not ours and (unsupported is not None or nothing_ours):
        if key is not None and unsupported is None:
            _remember(key)
        if plain:
            y = _theirs(op, input, weight, bias, stride, padding, dilation, groups, output_padding)
        else:
            y = compose_conv(*tensors, d.geometry)
        return y if out is None else out.copy_(y)
    g, passes = d.geometry, d.passes
    if needs_grad:
        frozen = not (owner.requires_grad or torch.compiler.is_compiling())
        return Convolution.apply(*tensors, g, passes, (owner,) if frozen else ())
    if torch.compiler.is_compiling():
        y = ops.convolution.default(
            *tensors, *flat(g), passes.result, passes.channels_last
        )
        return y if out is None else out.copy_(y)
    if out is None:
        return run(*tensors, g, passes.result, passes.channels_last, owner)
    if g.transposed or _shares_memory(out, tensors):
        return out.copy_(run(*tensors, g, passes.result, passes.channels_last, owner))
    packed = pack(owner, weight, input.shape[2:], g, False, passes.result)
    ops.conv_out.default(
        input, weight, packed, bias, residual, g.stride, g.padding, g.dilation, g.groups, g.padding_mode, g.activation,
        passes.result, out,
    )  # fmt: skip
    torch.autograd.graph.increment_version(out)
    return out


def _shares_memory(out: Tensor, tensors: tuple[Tensor | None, ...]) -> bool:
    storage = out.untyped_storage().data_ptr()
    return any(t is not None and t.untyped_storage().data_ptr() == storage for t in tensors)


def _theirs(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    output_padding: Any,
) -> Tensor:  # fmt: skip
    theirs = getattr(F, "conv1d" if op == "linear" else op)
    if output_padding is not None:
        return theirs(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return theirs(input, weight, bias, stride, padding, dilation, groups)


#: Calls that `auto` has handed over to torch before, by `_key`: the next one is handed over without asking again.
_handed_over: set[Any] = set()
_MOST_HANDED_OVER = 4096


def _key(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str | None,
) -> tuple[Any, bool]:  # fmt: skip
    """What the choice depends on, None where it cannot be a key; and whether such a call was handed over before."""
    if torch._C._is_any_autocast_enabled():
        return None, False
    grad = torch.is_grad_enabled()
    key = (  # an isa or an emulation that was chosen since makes torch no wrong choice
        op, input.shape, weight.shape, input.dtype, bias is None, stride, padding, dilation, groups, input.is_contiguous(),
        weight.is_contiguous(), grad and input.requires_grad, grad and weight.requires_grad, _winograd._current,
        activation,
    )  # fmt: skip
    try:
        return key, key in _handed_over
    except TypeError:  # lists
        return None, False


def _is_free(input: Tensor, weight: Tensor) -> bool:
    """Whether nobody asks for one implementation or for an explanation."""
    return (
        _backend._current == "auto"
        and _backend._recorder is None
        and type(input) is Tensor
        and isinstance(weight, Tensor)
        and weight.dim() > 2
        and not torch.compiler.is_compiling()
    )


def _remember(key: Any) -> None:
    if len(_handed_over) >= _MOST_HANDED_OVER:
        _handed_over.clear()
    _handed_over.add(key)


def _is_light(input: Tensor, d: Decision, enough: int) -> bool:
    """Depthwise and grouped convolutions save more at any size; under torch.compile a look at the batch would mean a
    compilation per batch."""
    dense = d.geometry.groups == 1 and input.dtype is torch.float32 and input.is_cpu
    return dense and not torch.compiler.is_compiling() and d.flops * input.shape[0] < enough


def _is_small(input: Tensor, weight: Tensor, groups: int, transposed: bool) -> bool:
    """Whether the call is all overhead."""
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    few = input.numel() * weight.numel() < SMALL * channels
    return few and input.is_cpu and input.dtype is not torch.float16
