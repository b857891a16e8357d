"""GroupNorm+SiLU at the shapes of a latent U-Net and a VAE decoder, LayerNorm and RMSNorm at those of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dlops.bench.cases._case import Candidates, Case

GROUPS = 32
GROUP_SHAPES = ((2, 320, 64, 64), (2, 1280, 8, 8), (1, 512, 128, 128))
ROW_SHAPES = ((4096, 768), (512, 4096))
DTYPES = (torch.float32, torch.bfloat16)
FLOPS = {"group_norm+silu": 20, "layer_norm": 8, "rms_norm": 5}  # per element, forward; about twice that backward

Norm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def norm_cases() -> list[Case]:
    from dlops import functional as ours

    def stock_group(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.silu(F.group_norm(x, GROUPS, weight, bias))

    def our_group(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ours.group_norm(x, GROUPS, weight, bias, activation="silu")

    def stock_layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def our_layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        return ours.layer_norm(x, x.shape[-1:], weight, bias)

    def stock_rms(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], weight)

    def our_rms(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        return ours.rms_norm(x, x.shape[-1:], weight)

    found = []
    for op, shapes, mine, stock in (
        ("group_norm+silu", GROUP_SHAPES, our_group, stock_group),
        ("layer_norm", ROW_SHAPES, our_layer, stock_layer),
        ("rms_norm", ROW_SHAPES, our_rms, stock_rms),
    ):
        for dtype in DTYPES:
            for shape in shapes:
                elements = math.prod(shape)
                compiled = shape == shapes[0] and dtype is torch.float32
                bytes_each = elements * dtype.itemsize
                forward = _forward(shape, dtype, mine, stock)
                backward = _backward(shape, dtype, mine, stock)
                flops = FLOPS[op] * elements
                # Forward reads x and writes y; backward reads dy and x and writes dx.
                found.append(Case("norm", op, shape, dtype, forward, flops, 2 * bytes_each, compile=compiled))
                found.append(Case("norm", f"{op}.backward", shape, dtype, backward, 2 * flops, 3 * bytes_each))
    return found


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    channels = shape[1] if len(shape) > 2 else shape[-1]
    x = torch.randn(shape, device=device)
    weight, bias = 1 + 0.1 * torch.randn(channels, device=device), 0.1 * torch.randn(channels, device=device)
    return [tensor.to(dtype) for tensor in (x, weight, bias)]


def _forward(shape: tuple[int, ...], dtype: torch.dtype, mine: Norm, stock: Norm) -> Callable:
    def build(device: torch.device) -> Candidates:
        x, weight, bias = _inputs(shape, dtype, device)
        return Candidates(
            dlops=lambda: mine(x, weight, bias),
            stock=lambda: stock(x, weight, bias),
            compilable=lambda: stock(x, weight, bias),
        )

    return build


def _backward(shape: tuple[int, ...], dtype: torch.dtype, mine: Norm, stock: Norm) -> Callable:
    def build(device: torch.device) -> Candidates:
        inputs = [tensor.requires_grad_() for tensor in _inputs(shape, dtype, device)]
        dy = torch.randn(shape, device=device).to(dtype)

        def gradients(norm: Norm) -> Callable[[], object]:
            y = norm(*inputs)
            # RMSNorm has no bias: unused.
            return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True, allow_unused=True)

        return Candidates(dlops=gradients(mine), stock=gradients(stock))

    return build
