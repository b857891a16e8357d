"""Which kernels a convolution takes. Everything here depends on sizes, types and layout, and is worked out once for each
combination. The batch decides nothing but what `auto` hands over to torch: our kernels give a sample the same bits in any."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import unset_fake_temporarily

from dlops._library import _C, has_cuda_kernels
from dlops._ops.conv import ACTIVATIONS, TORCH, Geometry, Passes, Sizes, in_size
from dlops.functional import _conv_rules

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

class Signature(NamedTuple):
    """A call without its batch and its values: shapes are those behind the first dimension."""

    op: str  # "conv2d", "conv_transpose1d", ...
    x: Sizes
    w: Sizes
    bias: Sizes | None
    dtypes: tuple[torch.dtype, ...]  # of x, w, and of bias where there is one
    stride: Any
    padding: Any
    dilation: Any
    groups: Any
    output_padding: Any = None  # transposed
    padding_mode: str = "zeros"
    activation: str | None = None

    @property
    def function(self) -> str:
        """Of torch.nn.functional. A linear layer is a 1-D convolution whose kernel has one element."""
        return "conv1d" if self.op == "linear" else self.op

    @property
    def spatial(self) -> int:
        return int(self.function[-2])

    @property
    def transposed(self) -> bool:
        return "transpose" in self.op


class Where(NamedTuple):
    """On what a call runs."""

    device: str  # "cpu", "cuda" (the simt runner too), or another
    isa: str
    channels_last: bool
    backend: str
    variant: str | None
    winograd: str
    grad_input: bool
    grad_weight: bool
    batch: int  # 1, 4 (4 to 7) or 8 (8 and more): for the hand-over to torch alone


class Decision(NamedTuple):
    geometry: Geometry
    passes: Passes
    result: Sizes  # the sizes of the result behind the batch
    flops: int  # per sample
    unsupported: str | None  # why none of our kernels can compute the result
    slower: str | None  # why torch is the faster one for it


def decide(signature: tuple[Any, ...], where: tuple[Any, ...]) -> Decision:
    """The kernels of every pass. The arguments are the fields of a Signature and of a Where.

    Raises:
        What torch raises for the same arguments: its own function is asked.
        ValueError: an activation, padding_mode or variant that does not exist.
    """
    if not torch.compiler.is_compiling():
        return _decide(signature, where)
    geometry, passes, *rest = _constants(signature, where)
    return Decision(Geometry(*geometry), Passes(*passes), *rest)


def _constants(signature: tuple[Any, ...], where: tuple[Any, ...]) -> tuple[Any, ...]:
    """A Decision in plain tuples, which torch.compile takes for constants."""
    geometry, passes, *rest = _decide(signature, where)
    return tuple(geometry), tuple(passes), *rest


_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile runs it instead of tracing it


@functools.lru_cache(maxsize=4096)
def _decide(signature: tuple[Any, ...], where_: tuple[Any, ...]) -> Decision:
    s, where = Signature(*signature), Where(*where_)
    with unset_fake_temporarily(), torch.no_grad():
        result = _ask_torch(s)
    if s.activation is not None and (s.activation not in ACTIVATIONS or s.activation == "none"):
        known = ", ".join(repr(name) for name in ACTIVATIONS if name != "none")
        raise ValueError(f"{s.op}: activation must be None or one of {known}: got {s.activation!r}")
    g = _geometry(s)
    sizes = _Sizes.of(s, g, result)
    flops = 2 * sizes.multiplications
    dtype = s.dtypes[0]
    unsupported = None
    if dtype not in _SHORT:
        unsupported = f"{dtype} has no kernel (float32, float16 and bfloat16 have)"
    elif where.device not in ("cpu", "cuda") or (where.device == "cuda" and not has_cuda_kernels and where.isa != "simt"):
        unsupported = f"no kernels for device {where.device!r} in this build"
    if unsupported is not None or where.backend == "torch":
        return Decision(g, TORCH, result, flops, unsupported, None)
    choice = _Choice(s, g, sizes, where)
    return Decision(g, choice.passes, result, flops, choice.unsupported, choice.slower)


def spread(value: Any, count: int) -> Sizes:
    """An int for every dimension, or one for each."""
    if hasattr(value, "__index__"):
        return (operator.index(value),) * count
    values = tuple(operator.index(v) for v in value)
    return values * count if len(values) == 1 else values


def _refuse_what_an_empty_batch_hides(s: Signature) -> None:
    """In torch's words: what it does not look at where there is nothing to compute."""
    n = s.spatial
    if len(s.w) != n + 2 or len(s.x) != n + 1:
        return
    if min(s.w[2:]) == 0:
        raise RuntimeError("kernel size should be greater than zero, but got shape " + str(list(s.w)))
    if min(spread(s.dilation, n)) < 1:
        raise RuntimeError("non-positive dilation is not supported")
    if s.transposed and not isinstance(s.padding, str):
        stride, dilation, extra = spread(s.stride, n), spread(s.dilation, n), spread(s.output_padding, n)
        if any(e >= max(a, b) for e, a, b in zip(extra, stride, dilation)):
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, but got output_padding: {extra}, "
                f"stride: {stride}, dilation: {dilation}"
            )


def _ask_torch(s: Signature) -> Sizes:
    """The sizes of the result behind the batch, from an empty batch: torch checks it like any other, and computes nothing."""
    _refuse_what_an_empty_batch_hides(s)
    x = torch.empty((0, *s.x), dtype=s.dtypes[0], device="cpu")
    w = torch.empty(1, dtype=s.dtypes[1], device="cpu").expand(s.w)
    bias = None if s.bias is None else torch.empty(s.bias, dtype=s.dtypes[2], device="cpu")
    theirs = getattr(F, s.function)
    if s.transposed:
        y = theirs(x, w, bias, s.stride, s.padding, s.output_padding, s.groups, s.dilation)
    elif s.padding_mode == "zeros":
        y = theirs(x, w, bias, s.stride, s.padding, s.dilation, s.groups)
    elif s.padding_mode in PADDING_MODES:
        padding = _both_sides(s)
        last_first = [size for i in range(len(padding) - 2, -1, -2) for size in padding[i : i + 2]]
        y = theirs(F.pad(x, last_first, s.padding_mode), w, bias, s.stride, 0, s.dilation, s.groups)
    else:
        raise ValueError(f"{s.op}: padding_mode must be one of {', '.join(PADDING_MODES)}: got {s.padding_mode!r}")
    result = tuple(y.shape[1:])
    if min(result[1:]) < 1:
        raise RuntimeError(
            f"Given input size per channel: {s.x[1:]}. Calculated output size per channel: {result[1:]}. Output size is too small"
        )
    return result


def _both_sides(s: Signature) -> Sizes:
    """Padding before and after each dimension, in turn."""
    n = s.spatial
    if s.padding == "valid":
        return (0,) * (2 * n)
    if s.padding == "same":
        total = [d * (k - 1) for d, k in zip(spread(s.dilation, n), s.w[2:])]
        return tuple(side for t in total for side in (t // 2, t - t // 2))
    if isinstance(s.padding, str):
        raise ValueError(f"{s.op}: padding must be numbers, 'same' or 'valid': got {s.padding!r}")
    return tuple(side for p in spread(s.padding, n) for side in (p, p))


def _geometry(s: Signature) -> Geometry:
    n = s.spatial
    return Geometry(
        spread(s.stride, n),
        _both_sides(s),
        spread(s.dilation, n),
        s.groups,
        s.transposed,
        spread(s.output_padding, n) if s.transposed else (),
        s.padding_mode,
        s.activation or "none",
    )


class _Sizes(NamedTuple):
    """The convolution whose adjoint a transposed one is, or the convolution itself."""

    channels: int
    filters: int
    groups: int
    x: Sizes  # spatial
    y: Sizes
    kernel: Sizes

    @staticmethod
    def of(s: Signature, g: Geometry, result: Sizes) -> _Sizes:
        if s.transposed:
            return _Sizes(s.w[1] * g.groups, s.x[0], g.groups, in_size(g, s.x[1:], s.w[2:]), s.x[1:], s.w[2:])
        return _Sizes(s.x[0], s.w[0], g.groups, s.x[1:], result[1:], s.w[2:])

    @property
    def multiplications(self) -> int:
        return self.channels // self.groups * self.filters * math.prod(self.kernel) * math.prod(self.y)


# What to try, the fastest first. Every kernel says itself what it refuses.
_ORDER = {
    "cpu": ("depthwise", "grouped", "gemm", "winograd", "winograd_f2", "direct", "naive"),
    "cuda": ("depthwise", "implicit_gemm", "winograd", "shared", "naive"),
}


class _Choice:
    """The kernels for one kind of call."""

    def __init__(self, s: Signature, g: Geometry, sizes: _Sizes, where: Where) -> None:
        self.s, self.g, self.sizes, self.where = s, g, sizes, where
        self.dtype = _SHORT[s.dtypes[0]]
        self.unsupported = self.slower = None
        forward = "data" if s.transposed else "forward"
        adjoint = "forward" if s.transposed else "data"
        if where.variant is not None:
            self._check_variant(forward)
            result = where.variant
        else:
            result = self._first(forward)
        if not result:
            self.unsupported = self._refusal(forward, _ORDER[where.device][-1])
            self.passes = TORCH
            return
        forced = where.variant is not None or where.backend == "dlops"
        padded = g.padding_mode != "zeros" or not g.symmetric  # the adjoints run on the padded image
        passes = {"result": result, "input": "", "weight": ""}
        for wanted, name, kind in ((where.grad_input, "input", adjoint), (where.grad_weight, "weight", "weight")):
            if wanted:
                same = where.variant if self._refusal(kind, where.variant) is None and not padded else None
                passes[name] = same or self._first(kind)
        if not forced:
            for name, kind in (("result", forward), ("input", adjoint), ("weight", "weight")):
                reason = _conv_rules.slower(self._call(kind, passes[name])) if passes[name] else None
                if reason is not None:
                    passes[name] = ""
                    if name == "result":
                        self.slower = reason
        self.passes = Passes(**passes, channels_last=where.channels_last)

    def _call(self, kind: str, kernel: str) -> _conv_rules.Call:
        z, w = self.sizes, self.where
        return _conv_rules.Call(
            self.s.op, kind, kernel, self.s.transposed, self.dtype, z.channels, z.filters, z.groups, z.x, z.y, z.kernel,
            self.g.stride, w.channels_last, w.batch, w.grad_weight, w.device, w.isa,
        )  # fmt: skip

    def _check_variant(self, kind: str) -> None:
        why = self._refusal(kind, self.where.variant)
        if why is not None:
            raise ValueError(f"{self.s.op}: variant {self.where.variant!r} {why}")

    def _first(self, kind: str) -> str:
        for name in _ORDER[self.where.device]:
            if name.startswith("winograd") and not self._may_winograd(name, kind):
                continue
            if self._refusal(kind, name) is None:
                return name
        return ""

    def _may_winograd(self, name: str, kind: str) -> bool:
        """Its F(2x2) takes fewer multiplications than a plain sum, with the same error; F(4x4) fewer still."""
        mode = self.where.winograd
        if mode == "off":
            return False
        two_by_two = name == "winograd_f2" or (self.where.device == "cuda" and kind != "weight")
        if not two_by_two and kind != "weight" and max(self.sizes.y) <= 4:
            return False  # one tile of F(4x4): its 36 planes of weights cost more than its products save
        return two_by_two or mode == "auto"

    def _refusal(self, kind: str, name: str | None) -> str | None:
        """Why the kernel cannot compute the pass, as the end of a sentence; None if it can."""
        g, z = self.g, self.sizes
        if name is None:
            return "was not asked for"
        if kind == "weight" or (kind == "data") != self.s.transposed:  # a pass backwards, on the padded image
            g = g._replace(padding_mode="zeros")
        n = len(z.x)
        before = g.before
        x = z.x
        if not self.s.transposed and (self.g.padding_mode != "zeros" or not self.g.symmetric) and kind != "forward":
            x = tuple(size + a + b for size, a, b in zip(x, self.g.padding[::2], self.g.padding[1::2]))
            before = (0,) * n
        return _C.conv_refuses(
            self.where.device == "cuda", kind, name, z.channels, z.filters, z.groups, x, z.y, z.kernel, g.stride, before,
            g.dilation, g.padding_mode, self.where.channels_last, self.dtype,
        )  # fmt: skip
