"""Linear layers at the shapes of transformers and classifiers, alone and with the GELU of a transformer's feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from dlops.bench.cases._case import Candidates, Case

# (rows, inputs, outputs)
SHAPES = ((1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768), (64, 4096, 4096), (8, 512, 1000))
FUSED = ((1024, 768, 3072), (4096, 320, 1280))
BACKWARD = (1024, 768, 3072)
DTYPES = (torch.float32, torch.bfloat16)


def linear_cases() -> list[Case]:
    found = []
    for dtype in DTYPES:
        found += [_case("linear", shape, dtype, _forward(shape, dtype, None)) for shape in SHAPES]
        found += [_case("linear+gelu", shape, dtype, _forward(shape, dtype, "gelu"), dtype.itemsize == 4) for shape in FUSED[:1]]
        found += [_case("linear+gelu", shape, dtype, _forward(shape, dtype, "gelu")) for shape in FUSED[1:]]
        found.append(_case("linear.backward", BACKWARD, dtype, _backward(BACKWARD, dtype), passes=2))
    found.append(_case("linear", SHAPES[0], torch.float16, _forward(SHAPES[0], torch.float16, None)))
    return found


def _case(
    op: str, shape: tuple[int, int, int], dtype: torch.dtype, build: Callable, compile: bool = False, passes: int = 1
) -> Case:
    rows, inputs, outputs = shape
    traffic = passes * (rows * inputs + inputs * outputs + rows * outputs) * dtype.itemsize
    return Case("linear", op, shape, dtype, build, 2.0 * passes * rows * inputs * outputs, traffic, compile=compile)


def _inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    rows, inputs, outputs = shape
    x, bias = torch.randn(rows, inputs, device=device), torch.randn(outputs, device=device)
    return [t.to(dtype) for t in (x, torch.randn(outputs, inputs, device=device) / inputs**0.5, bias)]


def _forward(shape: tuple[int, int, int], dtype: torch.dtype, activation: str | None) -> Callable:
    def build(device: torch.device) -> Candidates:
        from dlops.functional import linear as ours

        x, w, bias = _inputs(shape, dtype, device)

        def stock() -> torch.Tensor:
            y = F.linear(x, w, bias)
            return y if activation is None else F.gelu(y)

        return Candidates(dlops=lambda: ours(x, w, bias, activation=activation), stock=stock, compilable=stock)

    return build


def _backward(shape: tuple[int, int, int], dtype: torch.dtype) -> Callable:
    def build(device: torch.device) -> Candidates:
        from dlops.functional import linear as ours

        tensors = [t.requires_grad_() for t in _inputs(shape, dtype, device)]
        dy = torch.randn(shape[0], shape[2], device=device).to(dtype)

        def gradients(linear: Callable) -> Callable[[], object]:
            y = linear(*tensors)
            return lambda: torch.autograd.grad(y, tensors, dy, retain_graph=True)

        return Candidates(dlops=gradients(ours), stock=gradients(F.linear))

    return build
