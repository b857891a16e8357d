"""Convolutions of every form, the same calls as a user of torch would write them, and the error rule of the package."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import dlops
from dlops import functional
from dlops.reference import conv as reference

# What a value that is rounded once to the type may be off by, relative to the largest value: the absolute term of the rule,
# for cases in which torch's own error happens to be almost nothing.
TINY = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WINOGRAD = 2.5  # the root mean square of its error may be that of torch's channels-last path, times this

Sizes = int | tuple[int, ...] | str


@dataclass(frozen=True)
class Shape:
    """One convolution without its tensors. size: the input's, [N, C, *spatial]."""

    size: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    stride: Sizes = 1
    padding: Sizes = 0
    dilation: Sizes = 1
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: Sizes = 0

    @property
    def dims(self) -> int:
        return len(self.kernel)

    @property
    def weight_size(self) -> tuple[int, ...]:
        c, o = self.size[1], self.filters
        return (c, o // self.groups, *self.kernel) if self.transposed else (o, c // self.groups, *self.kernel)

    @property
    def options(self) -> dict[str, object]:
        """Keywords of the function."""
        names = ["stride", "padding", "dilation", "groups"]
        names.append("output_padding" if self.transposed else "padding_mode")
        return {name: getattr(self, name) for name in names}

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.size[1] and self.groups > 1

    @property
    def is_3x3(self) -> bool:
        """What Winograd is for."""
        each = lambda value: set(reference._each(value, 2))  # noqa: E731
        fits = self.kernel == (3, 3) and self.groups == 1 and each(self.stride) == each(self.dilation) == {1}
        return fits and (self.padding == "same" or max(each(self.padding)) <= 2)


def function(shape: Shape):
    return getattr(functional, f"conv_transpose{shape.dims}d" if shape.transposed else f"conv{shape.dims}d")


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with channels last in memory, for any number of dimensions."""
    if tensor.dim() < 3:
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def torchs(shape: Shape, x, w, bias=None, residual=None, activation=None):
    """As a user of torch writes it."""
    options = dict(shape.options)
    if shape.transposed:
        y = getattr(F, f"conv_transpose{shape.dims}d")(x, w, bias, **options)
    else:
        mode, padding = options.pop("padding_mode"), options["padding"]
        if mode != "zeros":
            sides = reference._paddings(padding, shape.kernel, reference._each(shape.dilation, shape.dims))
            x = F.pad(x, [side for pair in reversed(sides) for side in pair], mode=mode)
            options["padding"] = 0
        y = getattr(F, f"conv{shape.dims}d")(x, w, bias, **options)
    y = y if residual is None else y + residual
    return y if activation is None else getattr(torch if activation in ("tanh", "sigmoid") else F, activation)(y)


def specification(shape: Shape, x, w, bias=None, residual=None, activation=None):
    fn = reference.conv_transpose if shape.transposed else reference.convolution
    return fn(x, w, bias, **shape.options, activation=activation, residual=residual)


class Call:
    """A convolution with tensors, on the CPU and in `dtype`; what torch and the specification make of them is computed once,
    ours on the device that `check` is given."""

    def __init__(self, shape: Shape, dtype=torch.float32, last=False, bias=True, residual=False, activation=None):
        self.shape, self.dtype, self.last, self.activation = shape, dtype, last, activation
        generator = torch.Generator().manual_seed(sum(shape.size) + shape.filters)
        make = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
        x, w = make(*shape.size), make(*shape.weight_size) / max(1, shape.weight_size[1]) ** 0.5
        self.tensors = {"x": x, "w": w}
        out = torchs(shape, x.float(), w.float()).shape
        if bias:
            self.tensors["bias"] = make(shape.filters)
        if residual:
            self.tensors["residual"] = make(*out)
        self.dy = make(*out)
        self._known: dict[str, dict[str, torch.Tensor]] = {}

    def __str__(self):
        return f"{self.shape} {self.dtype} last={self.last} activation={self.activation} {[*self.tensors]}"

    def _run(self, fn, cast, grad=True):
        leaves = {name: cast(t).detach().requires_grad_(grad) for name, t in self.tensors.items()}
        y = fn(**leaves, activation=self.activation)
        results = {"y": y.detach()}
        if grad:
            grads = torch.autograd.grad(y, list(leaves.values()), cast(self.dy))
            results |= {f"d{name}": g for name, g in zip(leaves, grads)}
        return {name: value.cpu() for name, value in results.items()}

    def _once(self, name, fn, cast):
        if name not in self._known:
            with dlops.backend("torch"):
                self._known[name] = self._run(fn, cast)
        return self._known[name]

    def exact(self):
        return self._once("exact", functools.partial(specification, self.shape), torch.Tensor.double)

    def torchs(self):
        return self._once("torch", functools.partial(torchs, self.shape), lambda t: t)

    def torchs_last(self):
        """Torch in float32 on channels-last tensors: another algorithm, with a larger error."""
        return self._once("last", functools.partial(torchs, self.shape), lambda t: channels_last(t.float()))

    def ours(self, device="cpu", variant=None, grad=True):
        def fn(x, w, bias=None, residual=None, activation=None):
            options = self.shape.options | {"activation": activation, "residual": residual, "variant": variant}
            return function(self.shape)(x, w, bias, **options)

        layout = channels_last if self.last else lambda t: t
        return self._run(fn, lambda t: layout(t.to(device)) if t.dim() > 2 else t.to(device), grad)

    def check(self, device="cpu", variant=None, grad=True):
        mine, yours, exact = self.ours(device, variant, grad), self.torchs(), self.exact()
        may_winograd = self.dtype is torch.float32 and self.shape.is_3x3
        asked = variant in (None, "winograd", "winograd_f2")
        padded = self.shape.padding_mode != "zeros"  # the gradients of such a call come from the fastest rung, whatever it asks
        for name, value in mine.items():
            winograd = may_winograd and (asked or (padded and name != "y"))
            what = f"{name} of {self} by {variant}"
            assert value.dtype is self.dtype, what
            if winograd:
                check_rms(value, self.torchs_last()[name], exact[name], what)
            else:
                check_rule(value, yours[name], exact[name], what)
        return mine


@functools.cache
def call(shape: Shape, dtype=torch.float32, last=False, **more) -> Call:
    """A Call that all devices and variants share."""
    return Call(shape, dtype, last, **more)


def check_rule(ours: torch.Tensor, yours: torch.Tensor, exact: torch.Tensor, what: str) -> None:
    """The maximum and the mean error against float64 are at most twice torch's own in the same dtype, plus a tiny absolute
    term."""
    assert exact.dtype == torch.float64 and ours.shape == exact.shape, (what, ours.shape, exact.shape)
    if ours.numel() == 0:
        return
    assert ours.isfinite().all(), f"{what}: {int((~ours.isfinite()).sum())} of {ours.numel()} values are not finite"
    mine, yours = (ours.double() - exact).abs(), (yours.double() - exact).abs()
    tiny = TINY[ours.dtype] * exact.abs().max()
    assert mine.max() <= 2 * yours.max() + tiny, (what, float(mine.max()), float(yours.max()), float(tiny))
    assert mine.mean() <= 2 * yours.mean() + tiny / 4, (what, float(mine.mean()), float(yours.mean()))


def check_rms(ours: torch.Tensor, yours: torch.Tensor, exact: torch.Tensor, what: str) -> None:
    """Winograd's rule."""
    assert ours.shape == exact.shape, (what, ours.shape, exact.shape)
    if ours.numel() == 0:
        return
    assert ours.isfinite().all(), f"{what}: {int((~ours.isfinite()).sum())} of {ours.numel()} values are not finite"
    mine, yours = ((t.double() - exact).square().mean().sqrt() for t in (ours, yours))
    tiny = TINY[torch.float32] * exact.abs().max()
    assert mine <= WINOGRAD * yours + tiny, (what, float(mine), float(yours), float(tiny))


# ---- what is tried

SHAPES = {
    "3x3": Shape((2, 5, 9, 11), 7, (3, 3), padding=1),
    "3x3 many channels": Shape((1, 33, 6, 7), 35, (3, 3), padding=1),
    "3x3 full lanes": Shape((1, 32, 8, 8), 32, (3, 3), padding=1),
    "3x3 without padding": Shape((1, 3, 7, 9), 4, (3, 3)),
    "3x3 one pixel": Shape((3, 4, 1, 1), 5, (3, 3), padding=1),
    "3x3 wide padding": Shape((1, 3, 5, 4), 6, (3, 3), padding=(2, 3)),
    "3x3 strided": Shape((2, 6, 9, 8), 5, (3, 3), stride=2, padding=1),
    "3x3 dilated": Shape((1, 6, 9, 10), 9, (3, 3), padding=2, dilation=2),
    "1x1": Shape((2, 19, 5, 7), 21, (1, 1)),
    "1x1 strided": Shape((1, 6, 7, 6), 5, (1, 1), stride=(2, 3)),
    "1x1 padded": Shape((1, 4, 3, 4), 5, (1, 1), padding=1),
    "5x5": Shape((1, 3, 11, 10), 6, (5, 5), stride=2, padding=2),
    "stem": Shape((1, 3, 19, 17), 8, (7, 7), stride=2, padding=3),
    "patches": Shape((2, 3, 8, 12), 10, (4, 4), stride=4),
    "every option": Shape((1, 4, 9, 13), 6, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(3, 2), groups=2),
    "kernel larger than the image": Shape((1, 3, 4, 5), 4, (7, 7), padding=3),
    "stride beyond the image": Shape((1, 3, 4, 5), 4, (2, 2), stride=7, padding=1),
    "same, even kernel": Shape((1, 3, 6, 7), 4, (4, 2), padding="same", dilation=(1, 2)),
    "grouped by 4": Shape((1, 16, 7, 6), 16, (3, 3), padding=1, groups=4),
    "grouped by 8": Shape((2, 32, 5, 9), 32, (3, 3), padding=1, groups=4),
    "grouped, strided": Shape((1, 12, 7, 6), 24, (3, 3), stride=2, padding=1, groups=3),
    "depthwise": Shape((2, 19, 9, 8), 19, (3, 3), padding=1, groups=19),
    "depthwise, wide rows": Shape((1, 5, 6, 37), 5, (3, 3), padding=1, groups=5),
    "depthwise 7x7": Shape((1, 18, 10, 9), 18, (7, 7), padding=3, groups=18),
    "depthwise 31x31": Shape((1, 3, 11, 13), 3, (31, 31), padding=15, groups=3),
    "depthwise, strided": Shape((1, 17, 9, 10), 17, (5, 5), stride=2, padding=2, groups=17),
    "depthwise, dilated": Shape((1, 6, 9, 10), 6, (3, 3), padding=2, dilation=2, groups=6),
    "depthwise with multiplier": Shape((1, 6, 7, 8), 12, (3, 3), padding=1, groups=6),
    "reflect": Shape((1, 4, 6, 5), 5, (3, 3), padding=1, padding_mode="reflect"),
    "replicate": Shape((2, 3, 5, 6), 4, (5, 5), padding=4, padding_mode="replicate"),
    "circular": Shape((1, 3, 6, 7), 4, (3, 3), padding=3, dilation=2, padding_mode="circular"),
    "depthwise, reflect": Shape((1, 6, 7, 6), 6, (5, 5), padding=2, groups=6, padding_mode="reflect"),
    "reflect, strided, one-sided": Shape((1, 3, 9, 8), 4, (3, 3), (2, 1), (2, 0), padding_mode="reflect"),
    "1-D": Shape((2, 7, 23), 9, (3,), padding=1),
    "1-D dilated": Shape((1, 6, 40), 7, (2,), padding=8, dilation=8),
    "1-D strided": Shape((1, 5, 33), 6, (4,), stride=3, padding=2),
    "1-D 1x1": Shape((2, 9, 12), 17, (1,)),
    "1-D depthwise k4": Shape((2, 21, 39), 21, (4,), padding=3, groups=21),
    "1-D depthwise k31": Shape((1, 18, 45), 18, (31,), padding=15, groups=18),
    "1-D depthwise, wide padding": Shape((1, 3, 24), 3, (3,), padding=13, groups=3),
    "1-D depthwise, wider padding": Shape((1, 3, 24), 3, (5,), padding=14, groups=3),
    "1-D circular": Shape((1, 4, 9), 5, (5,), padding="same", padding_mode="circular"),
    "3-D": Shape((1, 5, 4, 5, 6), 6, (3, 3, 3), padding=1),
    "3-D every option": Shape((1, 4, 6, 5, 7), 6, (1, 2, 3), (1, 2, 1), (0, 1, 2), (2, 1, 1), groups=2),
    "3-D depthwise": Shape((1, 7, 4, 5, 6), 7, (3, 3, 3), padding=1, groups=7),
    "3-D, padding alone": Shape((1, 4, 1, 8, 8), 4, (1, 3, 3), stride=(3, 1, 1), padding=1),
    "3-D replicate": Shape((1, 2, 4, 5, 3), 3, (3, 3, 3), stride=2, padding=1, padding_mode="replicate"),
    "transposed 4x4": Shape((2, 6, 4, 5), 5, (4, 4), stride=2, padding=1, transposed=True),
    "transposed 2x2": Shape((1, 5, 4, 3), 9, (2, 2), stride=2, transposed=True),
    "transposed 3x3": Shape((1, 6, 6, 5), 7, (3, 3), padding=1, transposed=True),
    "transposed, output padding": Shape(
        (1, 5, 4, 5), 4, (3, 3), stride=(2, 3), padding=1, transposed=True, output_padding=(1, 2)
    ),
    "transposed, gaps": Shape((1, 3, 3, 4), 4, (2, 2), stride=3, transposed=True),
    "transposed, dilated, grouped": Shape((1, 6, 4, 5), 4, (3, 2), (1, 2), (2, 0), 2, 2, transposed=True),
    "transposed, depthwise": Shape((1, 9, 5, 6), 9, (3, 3), stride=2, padding=1, groups=9, transposed=True),
    "transposed 1-D": Shape((2, 5, 9), 6, (4,), stride=2, padding=1, transposed=True),
    "transposed 3-D": Shape((1, 4, 3, 2, 4), 3, (2, 2, 2), stride=2, transposed=True),
    "transposed 1x1": Shape((1, 5, 4, 4), 6, (1, 1), transposed=True),
}

CPU_VARIANTS = ("naive", "direct", "gemm", "winograd", "winograd_f2", "depthwise", "grouped")
CUDA_VARIANTS = ("naive", "shared", "winograd", "depthwise", "implicit_gemm")


def variants(device) -> tuple[str, ...]:
    return CUDA_VARIANTS if device.torch_device == "cuda" or device.simt else CPU_VARIANTS


def must_take(variant: str | None, shape: Shape, dtype: torch.dtype, last: bool) -> bool:
    """Whether a variant may not refuse this; what it may refuse, it either computes or refuses in words."""
    pointwise = set(shape.kernel) == {1} and shape.stride == 1 and shape.padding == 0
    if variant in (None, "naive"):
        return True
    if variant in ("direct", "shared"):
        return shape.groups == 1
    if variant == "gemm":
        return pointwise and shape.groups == 1
    if variant in ("winograd", "winograd_f2"):
        return shape.is_3x3
    if variant == "depthwise":
        return shape.is_depthwise and shape.filters == shape.groups and shape.stride == 1 and not shape.transposed
    if variant == "grouped":
        per_group = shape.size[1] // shape.groups
        return shape.groups > 1 and per_group == shape.filters // shape.groups == 4 and shape.stride == 1
    distinct = shape.size[1] > 1 and math.prod(shape.size[2:]) > 1  # else channels last is channels first
    return dtype is not torch.float32 and last and distinct and shape.groups == 1  # implicit_gemm


def random_shape(seed: int) -> Shape:
    """A small convolution that torch accepts."""
    draw = random.Random(seed)
    while True:
        shape = _any_shape(draw)
        try:
            torchs(shape, torch.ones(shape.size), torch.ones(shape.weight_size))
        except RuntimeError:
            continue
        return shape


def _any_shape(draw: random.Random) -> Shape:
    dims = draw.choice((1, 2, 2, 2, 3))
    each = lambda *values: tuple(draw.choice(values) for _ in range(dims))  # noqa: E731
    groups = draw.choice((1, 1, 1, 2, 3))
    channels, filters = groups * draw.choice((1, 2, 5, 8, 17)), groups * draw.choice((1, 3, 4, 9, 16))
    if draw.random() < 0.2:
        channels = groups = draw.choice((3, 8, 17))
        filters = groups * draw.choice((1, 1, 2))
    size = (draw.choice((1, 2, 3)), channels, *each(1, 3, 4, 5, 7, 8, 11, 13))
    kernel, stride, padding, dilation = each(1, 2, 3, 3, 4, 5), each(1, 1, 1, 2, 3), each(0, 1, 1, 2, 3), each(1, 1, 1, 2, 3)
    shape = Shape(size, filters, kernel, stride, padding, dilation, groups)
    if draw.random() < 0.25:
        return replace(shape, transposed=True, output_padding=each(0, 0, 1))
    if draw.random() < 0.3:
        return replace(shape, padding_mode=draw.choice(("reflect", "replicate", "circular")))
    return shape
