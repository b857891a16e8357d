"""Which convolutions torch computes faster: what `auto` hands over, pass by pass.

Measured on one thread of a Zen 4 (AVX-512), torch 2.13, by `dlops bench --family conv`; figures in csrc/conv/README.md. A rule
holds for a class of shapes and takes the side that loses nowhere in it. Each function returns the reason, or None where our
kernel is the faster one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from dlops._library import _C


class Call(NamedTuple):
    """One pass of a convolution."""

    op: str  # "conv2d", "linear", ...
    kind: str  # "forward", "data" or "weight"
    kernel: str  # ours
    transposed: bool
    dtype: str  # "f32", "f16", "bf16"
    channels: int
    filters: int
    groups: int
    x: tuple[int, ...]  # spatial sizes of the image, of the result and of the kernel
    y: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    channels_last: bool
    batch: int  # 1, 4 (4 to 7) or 8 (8 and more): whoever packs the weights on every call must have a use for them
    packs: bool  # the weights change between calls, so every call packs them
    device: str
    isa: str

    @property
    def pixels(self) -> int:
        return math.prod(self.y)


def slower(c: Call) -> str | None:
    """Why torch is the faster one; None: it is not."""
    if c.device != "cpu":
        return "CUDA convolutions were never timed against cuDNN"
    if c.dtype == "f16" and not _native("fp16"):
        return None  # torch has no fast float16 convolution on such a CPU: 5 to 100 times slower
    if c.isa == "generic" or c.dtype == "f16":
        return "was never timed on this CPU"
    if c.op == "linear":
        return "a plain matrix product: torch's library needs no packed copy of the weight"
    return _RULES[c.kernel](c)


def _native(dtype: str) -> bool:
    """Whether torch's convolutions compute in this half type, rather than emulate it."""
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported")())


def _winograd(c: Call) -> str | None:
    narrow = min(c.channels, c.filters) // c.groups
    if narrow < 16:
        return f"{narrow} channels: the transforms cost more than they save"
    if c.dtype == "bf16" and c.pixels < 400:
        return f"{c.pixels} pixels in bfloat16: torch's dot products are as fast as the transforms"
    total = c.batch * c.pixels
    if c.kind == "weight":
        enough = 128 if narrow < 256 or c.channels_last else 192
        return _few(total) if total < enough else None
    if c.pixels < 49:
        return f"{c.pixels} pixels: most of what the transforms compute is padding"
    if c.dtype != "f32":
        return None
    if narrow < 32 and c.batch == 1:
        return _few(total) if c.pixels < 1024 else None
    if c.channels_last:
        enough = 2048 if narrow < 32 else 256 if c.batch == 1 else 448 if narrow < 256 else 392
    elif narrow < 32:
        enough = 448
    else:
        enough = 100 if c.batch == 1 and narrow < 128 else 196
    if narrow >= 128 and (c.kind == "data" or c.packs):  # many weights to transform on every call
        enough = max(enough, 392)
    return _few(total) if total < enough else None


def _few(pixels: int) -> str:
    return f"{pixels} pixels or so: transforming the weights, or reading them transformed, costs more than it saves"


def _gemm(c: Call) -> str | None:
    if c.dtype == "bf16":
        return "1x1 in bfloat16: torch has dot products, ours computes in float32"
    if len(c.x) == 3 and c.batch == 1 and c.kind != "weight":
        return None  # torch's path for one sample in 3-D
    if not _C.cpu_is_amd():
        return "1x1: a plain matrix product, which torch's library does at full speed on this CPU"
    if c.kind == "weight":
        return "1x1 weight gradients: parity at best"
    if c.channels * c.filters < 8192:
        return f"{c.channels} x {c.filters} channels: too few to fill the register tile for long"
    if (c.kind == "data" or c.packs) and c.batch * c.pixels < 1024:
        return f"{c.batch * c.pixels} pixels or so: packing the weights on every call costs more than it saves"
    return None


def _depthwise(c: Call) -> str | None:
    widest = max(c.taps)
    if len(c.x) == 1:
        return None
    if c.channels == 1 and len(c.x) == 2 and c.kind != "data":
        return "an image of one channel: torch's direct kernels read it once for all filters"
    if len(c.x) == 3:
        if c.kind == "forward" and c.channels_last and widest < 5:
            return "small 3-D kernels in channels_last: parity at best"
        return None
    if c.channels_last:
        if widest >= 5:
            if c.dtype == "bf16" and c.kind == "forward":
                return "channels_last in bfloat16: torch widens on the fly, ours in scratch"
            return None
        if c.kind == "data" and c.stride == (1, 1) and c.channels >= 64 and c.dtype == "f32":
            return None
        if c.kind == "weight" and c.dtype == "bf16":
            return None
        return "3x3 in channels_last: bound by memory, torch reads it where it lies"
    if c.kind == "forward" and widest >= 5 and c.pixels < (400 if widest < 7 else 100):
        return f"{c.pixels} pixels: rows too short for lanes"
    if c.kind == "forward" and widest < 5 and (c.batch == 1 or c.channels * c.pixels < 1 << 16):
        return "little data: it stays in the cache, where torch is as fast"
    return None


def _grouped(c: Call) -> str | None:
    if c.groups == 1:
        return "a single group of few channels: torch's direct kernels are as fast or faster"
    if c.kind == "data" and c.channels // c.groups > 4 and c.channels_last:
        return "more than 4 channels per group in channels_last: parity at best"
    return None


def _direct(c: Call) -> str | None:
    if c.dtype == "bf16":
        return "torch has dot products, ours computes in float32"
    if len(c.x) == 3 and c.batch == 1 and c.groups == 1:
        return None  # torch's path for one sample in 3-D: 2 to 5 times slower
    if c.groups > 1:
        per_group = c.channels // c.groups
        if c.kind == "weight" and per_group <= 4 and not c.channels_last:
            return None
        if per_group >= 32 and c.channels_last:
            return None
        return "groups: torch's direct kernels are as fast or faster"
    if c.kind == "data" and math.prod(c.stride) > 4:
        return "large strides: each phase packs weights of its own"
    if c.transposed and c.kind == "data":
        if max(c.stride) > 1 and c.pixels <= 64 and min(c.channels, c.filters) >= 256:
            return None
        return "a transposed convolution of more than 64 pixels or few channels: torch's kernels are as fast or faster"
    if c.kind == "weight" and c.channels_last and len(c.x) == 2:
        return None
    if len(c.x) == 1 and min(c.channels, c.filters) >= 32:
        if c.kind == "data" or c.packs:
            return None if c.batch * c.pixels >= 1024 else "packing the weights on every call costs more than it saves"
        return None
    return "torch's direct kernels are as fast or faster"


def _naive(c: Call) -> str | None:
    return "the naive kernel is the specification, not a fast one"


_RULES = {
    "winograd": _winograd,
    "winograd_f2": _winograd,
    "gemm": _gemm,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "direct": _direct,
    "naive": _naive,
}
