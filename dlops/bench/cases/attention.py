"""Attention at the shapes of language models, vision transformers, CLIP and U-Nets, forward and backward; decoding steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dlops.bench.cases._case import Candidates, Case

Sdpa = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class _Shape:
    """q [batch, heads, length, d], k and v [batch, kv_heads, keys, d]."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    keys: int
    d: int
    causal: bool = False

    @property
    def name(self) -> tuple[int, ...]:
        return (self.batch, self.heads, self.length, self.d)

    @property
    def flops(self) -> float:
        """2 products of 2 operations for every visible pair of row and key."""
        pairs = self.length * self.keys / (2 if self.causal else 1)
        return 4 * self.d * pairs * self.batch * self.heads

    @property
    def elements(self) -> int:
        """Of q and the output, and of k and v."""
        return 2 * self.d * self.batch * (self.heads * self.length + self.kv_heads * self.keys)


def _self(batch: int, heads: int, length: int, d: int, causal: bool = False) -> _Shape:
    return _Shape(batch, heads, heads, length, length, d, causal)


LONG = [_self(1, 8, 1024, 64), _self(1, 8, 2048, 64, True), _self(1, 2, 4096, 128, True), _self(1, 8, 4096, 40)]
SHORT = [_self(2, 8, 256, 40), _self(8, 12, 197, 64), _self(8, 8, 77, 64, True), _self(64, 8, 16, 64)]
TRAINED = [LONG[0], LONG[1], _self(1, 8, 1024, 128), SHORT[1]]
DECODED = [_Shape(1, 32, 8, 1, keys, 128) for keys in (512, 4096, 16384)]
DTYPES = (torch.float32, torch.bfloat16)
RUNGS = ("naive", "tiled")  # of the ladder, those that every device has


def attention_cases() -> list[Case]:
    from dlops.functional import scaled_dot_product_attention as ours

    found = []
    for rung in RUNGS:
        op, variant = f"attention[{rung}]", functools.partial(ours, variant=rung)
        found.append(_case(op, SHORT[0], torch.float32, _forward(SHORT[0], torch.float32, variant), SHORT[0].flops, 1))
    for dtype in DTYPES:
        for shape in (*LONG, *SHORT):
            op = "attention.causal" if shape.causal else "attention"
            compiled = shape is LONG[0] and dtype is torch.float32
            found.append(_case(op, shape, dtype, _forward(shape, dtype, ours), shape.flops, 1, compile=compiled))
        for shape in TRAINED:
            op = "attention.causal.backward" if shape.causal else "attention.backward"
            found.append(_case(op, shape, dtype, _backward(shape, dtype, ours), 2.5 * shape.flops, 2))
        for shape in DECODED:
            case = _case("attention.decode", shape, dtype, _decode(shape, dtype, ours), shape.flops, 1, baseline="matmul")
            found.append(case)
    return found


def _case(op: str, shape: _Shape, dtype: torch.dtype, build: Callable, flops: float, passes: int, **more) -> Case:
    name = (*shape.name, shape.keys) if op == "attention.decode" else shape.name
    return Case("attention", op, name, dtype, build, flops, passes * shape.elements * dtype.itemsize, **more)


def _inputs(shape: _Shape, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    sizes = ((shape.heads, shape.length), (shape.kv_heads, shape.keys), (shape.kv_heads, shape.keys))
    return [torch.randn(shape.batch, h, n, shape.d, device=device).to(dtype) for h, n in sizes]


def _forward(shape: _Shape, dtype: torch.dtype, ours: Sdpa) -> Callable:
    def build(device: torch.device) -> Candidates:
        q, k, v = _inputs(shape, dtype, device)
        stock = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)  # noqa: E731
        return Candidates(dlops=lambda: ours(q, k, v, is_causal=shape.causal), stock=stock, compilable=stock)

    return build


def _backward(shape: _Shape, dtype: torch.dtype, ours: Sdpa) -> Callable:
    def build(device: torch.device) -> Candidates:
        inputs = [t.requires_grad_() for t in _inputs(shape, dtype, device)]
        dout = torch.randn(shape.name, device=device).to(dtype)

        def gradients(sdpa: Sdpa) -> Callable[[], object]:
            out = sdpa(*inputs, is_causal=shape.causal)
            return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)

        return Candidates(dlops=gradients(ours), stock=gradients(F.scaled_dot_product_attention))

    return build


def _decode(shape: _Shape, dtype: torch.dtype, ours: Sdpa) -> Callable:
    """Against the rows of a group folded into one matrix, which is several times faster than torch's own function here."""

    def build(device: torch.device) -> Candidates:
        q, k, v = _inputs(shape, dtype, device)

        def folded() -> torch.Tensor:
            rows = q.reshape(shape.batch, shape.kv_heads, -1, shape.d)  # [B, Hk, group, D]
            weights = torch.softmax(rows @ k.transpose(-1, -2) * shape.d**-0.5, dim=-1)
            return (weights @ v).reshape(q.shape)

        return Candidates(dlops=lambda: ours(q, k, v, enable_gqa=True), stock=folded, compilable=folded)

    return build
