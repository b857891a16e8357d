"""Convolutions at the shapes of ResNet, MobileNet, ConvNeXt, U-Nets, DCGAN, Mamba and Conformer, in both layouts: forward, the
gradient of the input and the gradient of the weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from dlops.bench.cases._case import Candidates, Case

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FORWARD, DATA, WEIGHT = "", ".data", ".weight"  # which pass, as the end of an op's name
LAYOUTS = ("", ".last")
Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    """x [N, C, *spatial], and how it is convolved. `name` is the op's."""

    name: str
    size: tuple[int, ...]
    filters: int
    kernel: int
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = (F32,)
    layouts: tuple[str, ...] = LAYOUTS
    passes: tuple[str, ...] = (FORWARD,)
    transposed: bool = False
    fused: bool = False  # bias, residual and ReLU as well

    @property
    def dims(self) -> int:
        return len(self.size) - 2

    @property
    def weight_size(self) -> tuple[int, ...]:
        groups, kernel = self.options.get("groups", 1), (self.kernel,) * self.dims
        if self.transposed:
            return (self.size[1], self.filters // groups, *kernel)
        return (self.filters, self.size[1] // groups, *kernel)

    @property
    def result_size(self) -> tuple[int, ...]:
        stride, padding = self.options.get("stride", 1), self.options.get("padding", 0)
        reach = self.options.get("dilation", 1) * (self.kernel - 1)
        if self.transposed:
            spatial = [(s - 1) * stride - 2 * padding + reach + 1 for s in self.size[2:]]
        else:
            spatial = [(s + 2 * padding - reach - 1) // stride + 1 for s in self.size[2:]]
        return (self.size[0], self.filters, *spatial)

    @property
    def flops(self) -> float:
        """2 operations for every weight and every place that it is used at."""
        places = self.size if self.transposed else self.result_size
        return 2.0 * math.prod(self.weight_size) * places[0] * math.prod(places[2:])

    @property
    def elements(self) -> int:
        sizes = [self.size, self.weight_size, self.result_size, *([self.result_size] if self.fused else [])]
        return sum(math.prod(size) for size in sizes)

    def function(self, package: Any) -> Function:
        return getattr(package, f"conv_transpose{self.dims}d" if self.transposed else f"conv{self.dims}d")


def _square(name: str, n: int, c: int, side: int, filters: int, kernel: int, **more: Any) -> _Layer:
    return _Layer(name, (n, c, side, side), filters, kernel, **more)


def _depthwise(n: int, c: int, side: int, kernel: int, **more: Any) -> _Layer:
    options = {"padding": kernel // 2, "groups": c}
    return _square(f"conv_depthwise{kernel}x{kernel}", n, c, side, c, kernel, options=options, **more)


def _layers() -> list[_Layer]:
    edge = {"padding": 1}
    backwards = (FORWARD, DATA, WEIGHT)
    layers = [
        _square("conv3x3", 8, 64, 56, 64, 3, options=edge, dtypes=(F32, BF16, F16), passes=backwards),
        _square("conv3x3", 8, 128, 28, 128, 3, options=edge, dtypes=(F32, BF16), passes=backwards),
        _square("conv3x3", 8, 256, 14, 256, 3, options=edge, dtypes=(F32, BF16), passes=backwards),
        _square("conv3x3", 8, 512, 7, 512, 3, options=edge, dtypes=(F32, BF16), passes=backwards),
        _square("conv3x3", 2, 320, 64, 320, 3, options=edge, dtypes=(F32, BF16)),
        _square("conv3x3", 1, 64, 224, 64, 3, options=edge, dtypes=(F32, BF16)),
        _square("conv3x3+bias+residual+relu", 8, 64, 56, 64, 3, options=edge, fused=True),
        _square("conv1x1+bias+residual+relu", 8, 64, 56, 256, 1, fused=True),
    ]
    for c, side, filters in ((64, 56, 256), (256, 56, 64), (512, 28, 128), (1024, 14, 256), (512, 7, 2048)):
        dtypes = (F32, BF16, F16) if c == 64 else (F32,)
        layers.append(_square("conv1x1", 8, c, side, filters, 1, dtypes=dtypes, passes=backwards if c == 64 else (FORWARD,)))
    layers += [
        _depthwise(8, 144, 56, 3),
        _depthwise(8, 240, 28, 5, passes=backwards),
        _depthwise(8, 96, 56, 7, passes=backwards, dtypes=(F32, BF16)),
        _depthwise(8, 192, 28, 7),
        _depthwise(8, 384, 14, 7, passes=backwards),
        _depthwise(8, 768, 7, 7),
        _depthwise(1, 128, 56, 31),
        _square("conv_groups", 8, 128, 56, 128, 3, options=edge | {"groups": 32}),
        _square("conv_groups", 8, 256, 28, 256, 3, options=edge | {"groups": 64}),
        _square("conv_groups", 8, 256, 14, 256, 3, options=edge | {"groups": 32}),
        _square("conv_transpose4x4", 8, 512, 8, 256, 4, options=edge | {"stride": 2}, transposed=True),
        _square("conv_transpose4x4", 8, 256, 16, 128, 4, options=edge | {"stride": 2}, transposed=True),
        _square("conv_transpose4x4", 8, 128, 32, 64, 4, options=edge | {"stride": 2}, transposed=True),
        _square("conv3x3.stride2", 8, 64, 56, 128, 3, options=edge | {"stride": 2}),
        _square("conv3x3.stride2", 8, 256, 14, 512, 3, options=edge | {"stride": 2}),
        _square("conv1x1.stride2", 8, 256, 56, 512, 1, options={"stride": 2}),
        _square("conv3x3.dilation2", 2, 256, 32, 256, 3, options={"padding": 2, "dilation": 2}),
        _square("conv5x5", 8, 64, 28, 64, 5, options={"padding": 2}),
        _square("conv7x7.stem", 8, 3, 224, 64, 7, options={"padding": 3, "stride": 2}),
        _square("conv16x16.patches", 8, 3, 224, 768, 16, options={"stride": 16}),
        _Layer("conv3d", (1, 32, 16, 56, 56), 32, 3, edge),
        _Layer("conv3d", (1, 64, 8, 28, 28), 64, 3, edge),
    ]
    for size in ((1, 1536, 512), (8, 1536, 512), (1, 1536, 4096)):
        options = {"padding": 3, "groups": size[1]}
        layers.append(_Layer("conv1d_depthwise4", size, size[1], 4, options, layouts=("",), dtypes=(F32, BF16)))
    for size in ((8, 256, 512), (1, 512, 2048)):
        layers.append(_Layer("conv1d_depthwise31", size, size[1], 31, {"padding": 15, "groups": size[1]}, layouts=("",)))
    layers.append(_Layer("conv1d", (8, 256, 1024), 256, 3, edge, layouts=("",)))
    return layers


def conv_cases() -> list[Case]:
    found = []
    for layer in _layers():
        for dtype in layer.dtypes:
            for layout in layer.layouts:
                for which in layer.passes if dtype is F32 else (FORWARD,):
                    compiled = layer.size == (8, 64, 56, 56) and layer.fused and layout == ".last"
                    op, shape = f"{layer.name}{which}{layout}", (*layer.size, layer.filters)
                    build = _build(layer, dtype, layout, which)
                    traffic = layer.elements * dtype.itemsize
                    found.append(Case("conv", op, shape, dtype, build, layer.flops, traffic, compile=compiled))
    return found


def _last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _build(layer: _Layer, dtype: torch.dtype, layout: str, which: str) -> Callable[[torch.device], Candidates]:
    def build(device: torch.device) -> Candidates:
        from dlops import functional as ours

        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        arrange = _last if layout else lambda t: t
        x = arrange(torch.randn(layer.size, device=device).to(dtype))
        w = (torch.randn(layer.weight_size, device=device) / math.sqrt(math.prod(layer.weight_size[1:]))).to(dtype)
        if which != FORWARD:
            dy = arrange(torch.randn(layer.result_size, device=device).to(dtype))
            leaf = (x if which == DATA else w).requires_grad_()

            def gradient(function: Function) -> Callable[[], object]:
                y = function(x, w, **layer.options)
                return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)

            return Candidates(dlops=gradient(layer.function(ours)), stock=gradient(layer.function(F)))
        mine, stock = layer.function(ours), layer.function(F)
        if not layer.fused:
            return Candidates(dlops=lambda: mine(x, w, **layer.options), stock=lambda: stock(x, w, **layer.options))
        bias = torch.randn(layer.filters, device=device).to(dtype)
        residual = arrange(torch.randn(layer.result_size, device=device).to(dtype))
        separate = lambda: F.relu(stock(x, w, bias, **layer.options) + residual, inplace=True)  # noqa: E731
        return Candidates(
            dlops=lambda: mine(x, w, bias, **layer.options, activation="relu", residual=residual),
            stock=separate,
            compilable=separate,
        )

    return build
