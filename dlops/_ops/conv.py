"""The convolution ops for autograd and for fake tensors.

A convolution has three passes: the result, the gradient of the input (its adjoint in x) and the gradient of the weight (its
adjoint in w). Each is computed by one of our kernels or by torch's, whichever the caller's `Passes` name. A transposed
convolution is the second pass in the place of the first. A second derivative differentiates torch's own composition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function

from dlops import _packed
from dlops._library import cpu_isa, ops
from dlops._ops.derivatives import composes, derive

Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """What a convolution does, apart from its tensors. One entry per spatial dimension."""

    stride: Sizes
    padding: Sizes  # before and after each dimension, in turn
    dilation: Sizes
    groups: int
    transposed: bool = False
    output_padding: Sizes = ()  # transposed
    padding_mode: str = "zeros"
    activation: str = "none"

    @property
    def before(self) -> Sizes:
        return self.padding[::2]

    @property
    def symmetric(self) -> bool:
        return self.padding[::2] == self.padding[1::2]


class Passes(NamedTuple):
    """The kernel of each pass; "" is torch's. channels_last: the layout in which all of them run."""

    result: str
    input: str = ""
    weight: str = ""
    channels_last: bool = False


TORCH = Passes("")
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# d activation / dx by the activation's value; the others need x itself.
_BY_VALUE = {
    "relu": lambda dy, y: torch.ops.aten.threshold_backward.default(dy, y, 0),
    "tanh": lambda dy, y: torch.ops.aten.tanh_backward.default(dy, y),
    "sigmoid": lambda dy, y: torch.ops.aten.sigmoid_backward.default(dy, y),
}


# ---- the same in torch's ops: what runs where our kernels do not ----


def pad(x: Tensor, padding: Sizes, mode: str) -> Tensor:
    """F.pad by (before, after) of each spatial dimension."""
    last_first = [size for i in range(len(padding) - 2, -1, -2) for size in padding[i : i + 2]]
    return F.pad(x, last_first, "constant" if mode == "zeros" else mode)


def _plain(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    if g.transposed:
        return torch.convolution(x, w, bias, g.stride, g.before, g.dilation, True, g.output_padding, g.groups)
    padding = g.before
    if g.padding_mode != "zeros" or not g.symmetric:
        x, padding = pad(x, g.padding, g.padding_mode), (0,) * len(padding)
    return torch.convolution(x, w, bias, g.stride, padding, g.dilation, False, (0,) * len(padding), g.groups)


def compose_conv(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, g: Geometry) -> Tensor:
    y = _plain(x, w, bias, g)
    return ACTIVATIONS[g.activation](y if residual is None else y + residual)


# ---- one pass, by one of our kernels ----


def in_size(g: Geometry, x: Sizes, kernel: Sizes) -> Sizes:
    """The spatial size of a transposed convolution's result."""
    return tuple(
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, s, p, d, k, extra in zip(x, g.stride, g.before, g.dilation, kernel, g.output_padding)
    )


def pack(owner: Tensor, w: Tensor, size: Sizes, g: Geometry, data: bool, kernel: str) -> Tensor | None:
    """The packed weight of one pass on the CPU, kept with `owner`."""
    if not w.is_cpu or kernel in _NO_PACKING:
        return None
    key = (kernel, data, g.stride, g.padding, g.dilation, g.groups, w.dtype, cpu_isa())
    return _packed.kept(
        owner, key, lambda: ops.conv_pack.default(w.detach(), size, g.stride, g.padding, g.dilation, g.groups, data, kernel)
    )


_NO_PACKING = ("naive", "shared", "implicit_gemm")


def run_forward(x, w, bias, residual, g: Geometry, kernel: str, last: bool, owner: Tensor | None = None) -> Tensor:
    """The convolution with its epilogue, channels_last where `last`. owner: the parameter behind w."""
    packed = None if owner is None or type(x) is FakeTensor else pack(owner, w, x.shape[2:], g, False, kernel)
    return ops.conv.default(
        x, w, packed, bias, residual, g.stride, g.padding, g.dilation, g.groups, g.padding_mode, g.activation, last, kernel
    )


def run_data(dy, w, bias, residual, size: Sizes, g: Geometry, kernel: str, last: bool, owner: Tensor | None = None) -> Tensor:
    """The adjoint in x, of spatial size `size`, with the epilogue."""
    packed = None if owner is None or type(dy) is FakeTensor else pack(owner, w, size, g, True, kernel)
    return ops.conv_data.default(
        dy, w, packed, bias, residual, size, g.stride, g.padding, g.dilation, g.groups, g.activation, last, kernel
    )


def run(x, w, bias, residual, g: Geometry, kernel: str, last: bool, owner: Tensor | None = None) -> Tensor:
    """The first pass, whichever kind of convolution it is."""
    if kernel == "":
        return compose_conv(x, w, bias, residual, g)
    if g.transposed:
        return run_data(x, w, bias, residual, in_size(g, x.shape[2:], w.shape[2:]), g, kernel, last, owner)
    return run_forward(x, w, bias, residual, g, kernel, last, owner)


# What a compiled graph calls: the cache of packed weights is behind it, where the tracer does not look.
_library = torch.library.Library("dlops", "FRAGMENT")
_library.define(
    "convolution(Tensor x, Tensor w, Tensor? bias, Tensor? residual, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, bool transposed, SymInt[] output_padding, str padding_mode, str activation, str kernel, "
    "bool channels_last) -> Tensor"
)


def _convolution(x, w, bias, residual, *rest):
    *geometry, kernel, last = rest
    return run(x, w, bias, residual, _geometry(geometry), kernel, last, w)


def _geometry(values) -> Geometry:
    return Geometry(*(tuple(value) if isinstance(value, (list, tuple)) else value for value in values[:6]), *values[6:])


_library.impl("convolution", _convolution, "CPU")
_library.impl("convolution", _convolution, "CUDA")


# ---- derivatives ----


class Convolution(Function):
    """activation(conv(x, w) + bias + residual) by the kernels that `passes` names. owner: the parameter behind w in a tuple
    (autograd would take it for one more input), empty where its packed form is not worth keeping."""

    @staticmethod
    def forward(ctx, x, w, bias, residual, g, passes, owner):
        by_value = g.activation in _BY_VALUE
        linear = g if by_value else _without_epilogue(g, g.padding_mode)
        if torch.compiler.is_compiling() and passes.result:
            z = ops.convolution.default(x, w, bias, residual, *flat(linear), passes.result, passes.channels_last)
        else:
            z = run(x, w, bias, residual, linear, passes.result, passes.channels_last, *owner)
        if g.activation == "none":  # the derivatives depend on neither bias nor residual
            bias = residual = None
        ctx.save_for_backward(x, w, bias, residual, z if g.activation != "none" else None)
        ctx.options = g, passes
        return z if by_value else ACTIVATIONS[g.activation](z) if g.activation != "none" else z

    @staticmethod
    def backward(ctx, dy):
        x, w, bias, residual, z = ctx.saved_tensors
        g, passes = ctx.options
        needs = ctx.needs_input_grad[:4]
        if composes(dy) and g.activation != "none":
            grads = derive(lambda *t: compose_conv(*t, g), (x, w, bias, residual), needs, [dy])
            return *grads, None, None, None
        if g.activation != "none":
            dy = _through_activation(dy, z, g.activation)
        if composes(dy):
            dx, dw = derive(lambda *t: compose_conv(*t, None, None, g), (x, w), needs[:2], [dy])
        else:
            dx, dw = gradients(dy, x, w, g, passes, needs[0], needs[1])
        db = dy.sum((0, *range(2, dy.dim()))) if needs[2] else None
        return dx, dw, db, dy if needs[3] else None, None, None, None


def _without_epilogue(g: Geometry, padding_mode: str = "zeros") -> Geometry:
    return Geometry(g.stride, g.padding, g.dilation, g.groups, g.transposed, g.output_padding, padding_mode)


def flat(g: Geometry) -> list[object]:
    return [list(value) if isinstance(value, tuple) else value for value in g]


def _through_activation(dy: Tensor, z: Tensor, activation: str) -> Tensor:
    """z: the activation's value where that is enough (`_BY_VALUE`), else its argument."""
    if activation in _BY_VALUE:
        return _BY_VALUE[activation](dy, z)
    if activation == "silu":
        return torch.ops.aten.silu_backward.default(dy, z)
    return torch.ops.aten.gelu_backward.default(dy, z)


def gradients(dy, x, w, g: Geometry, passes: Passes, of_input: bool, of_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution without its epilogue."""
    if not g.transposed and (g.padding_mode != "zeros" or not g.symmetric):
        return _padded_gradients(dy, x, w, g, passes, of_input, of_weight)
    dx = dw = None
    plain = _without_epilogue(g)
    if of_input and passes.input:
        if g.transposed:
            dx = run_forward(dy, w, None, None, plain, passes.input, passes.channels_last)
            for d, size in enumerate(x.shape):  # an output_padding of a stride or more lets one more pixel in
                dx = dx.narrow(d, 0, size)
        else:
            dx = run_data(dy, w, None, None, x.shape[2:], plain, passes.input, passes.channels_last)
        of_input = False
    if of_weight and passes.weight:
        image, result = (dy, x) if g.transposed else (x, dy)
        dw = ops.conv_weight.default(
            image, result, w.shape[2:], g.stride, g.padding, g.dilation, g.groups, passes.channels_last, passes.weight
        )
        of_weight = False
    if of_input or of_weight:
        output_padding = g.output_padding if g.transposed else (0,) * len(g.stride)
        theirs = torch.ops.aten.convolution_backward.default(
            dy, x, w, None, g.stride, g.before, g.dilation, g.transposed, output_padding, g.groups, [of_input, of_weight, False]
        )
        dx, dw = theirs[0] if of_input else dx, theirs[1] if of_weight else dw
    return dx, dw


def _padded_gradients(dy, x, w, g: Geometry, passes: Passes, of_input: bool, of_weight: bool):
    """Where the forward pass pads in its index arithmetic as no adjoint kernel does: by way of the padded image."""
    inside = Geometry(g.stride, (0,) * len(g.padding), g.dilation, g.groups)
    dpadded, dw = gradients(dy, pad(x, g.padding, g.padding_mode), w, inside, passes, of_input, of_weight)
    return _unpad(dpadded, x, g.padding, g.padding_mode) if of_input else None, dw


def _unpad(dy: Tensor, x: Tensor, padding: Sizes, mode: str) -> Tensor:
    """The adjoint of `pad`: every element of x gets what its copies got."""
    sides = list(zip(range(2, x.dim()), padding[::2], padding[1::2]))
    if mode in ("reflect", "replicate"):
        name = f"{'reflection' if mode == 'reflect' else 'replication'}_pad{len(sides)}d_backward"
        last_first = [size for _, before, after in reversed(sides) for size in (before, after)]
        return getattr(torch.ops.aten, name).default(dy, x, last_first)
    for d, before, after in sides:
        inner = dy.narrow(d, before, x.shape[d])
        if mode == "circular":
            inner = inner.clone()
            inner.narrow(d, x.shape[d] - before, before).add_(dy.narrow(d, 0, before))
            inner.narrow(d, 0, after).add_(dy.narrow(d, before + x.shape[d], after))
        dy = inner
    return dy


# ---- fake tensors: shapes, dtypes and strides as in csrc/conv/ops.cpp ----


def _new_image(like: Tensor, sizes, last: bool) -> Tensor:
    order = (0, *range(2, len(sizes)), 1) if last else tuple(range(len(sizes)))
    made = like.new_empty([sizes[d] for d in order])
    return made.permute([order.index(d) for d in range(len(sizes))])


def _fake_forward(x, w, stride, padding, dilation, last):
    spatial = [
        (size + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (k - 1) - 1) // stride[i] + 1
        for i, (size, k) in enumerate(zip(x.shape[2:], w.shape[2:]))
    ]
    return _new_image(x, (x.shape[0], w.shape[0], *spatial), last)


@torch.library.register_fake("dlops::conv")
def _(x, w, packed, bias, residual, stride, padding, dilation, groups, padding_mode, activation, channels_last, algorithm):
    return _fake_forward(x, w, stride, padding, dilation, channels_last)


@torch.library.register_fake("dlops::conv_out")
def _(x, w, packed, bias, residual, stride, padding, dilation, groups, padding_mode, activation, algorithm, out):
    return None


@torch.library.register_fake("dlops::conv_data")
def _(dy, w, packed, bias, residual, in_size, stride, padding, dilation, groups, activation, channels_last, algorithm):
    return _new_image(dy, (dy.shape[0], w.shape[1] * groups, *in_size), channels_last)


@torch.library.register_fake("dlops::conv_weight")
def _(x, dy, kernel, stride, padding, dilation, groups, channels_last, algorithm):
    return x.new_empty((dy.shape[1], x.shape[1] // groups, *kernel))


@torch.library.register_fake("dlops::convolution")
def _(x, w, bias, residual, *rest):
    *geometry, _, last = rest
    g = _geometry(geometry)
    if g.transposed:
        return _new_image(x, (x.shape[0], w.shape[1] * g.groups, *in_size(g, x.shape[2:], w.shape[2:])), last)
    return _fake_forward(x, w, g.stride, g.padding, g.dilation, last)
