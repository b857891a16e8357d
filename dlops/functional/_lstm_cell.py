"""One step of a recurrent cell: by our kernel on packed weights, by torch's products and our gates, or by torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from dlops import _backend
from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import ops
from dlops._ops.lstm import UNKEPT, Gates, compose_gates, on_cuda, run_cell
from dlops.functional import _lstm_rules
from dlops.functional._checks import DTYPES, autocast, check_tensors
from dlops.functional._lstm import unsupported


def _is_simple(cell: str, input: Tensor, h: Tensor, c: Tensor | None, w_ih: Tensor, w_hh: Tensor) -> bool:
    """Whether a call is one of those that are all overhead, a module's in inference on the CPU: our kernel is one step away."""
    return (
        not (torch.is_grad_enabled() and _recorded(input, h, c, w_ih, w_hh))
        and type(w_hh) is Parameter
        and type(input) is Tensor
        and type(h) is Tensor
        and input.is_cpu
        and input.dtype is w_hh.dtype is w_ih.dtype
        and h.dtype is input.dtype
        and (c is None or c.dtype is input.dtype)
        and input.dtype in DTYPES
        and input.shape[-1] > 0
        and _backend._current != "torch"
        and _backend._recorder is None
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not transforming()
        and not torch.jit.is_tracing()
        and not on_cuda(input)
        and _lstm_rules.slower_cell(cell, input, w_hh, False, False) is None
    )


def _recorded(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def cell_step(
    cell: str, input: Tensor, h: Tensor, c: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    variant: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(h, c), or (h,), after one step."""
    if variant is None and _is_simple(cell, input, h, c, w_ih, w_hh):
        try:
            return tuple(run_cell(input, w_ih, w_hh, b_ih, b_hh, h, c, cell))
        except ValueError:
            return _torch(cell, input, h, c, w_ih, w_hh, b_ih, b_hh)  # which has its own words for what is wrong, if it is
    check_tensors(cell + "_cell", ("input", input), ("hx", h), ("w_ih", w_ih), ("w_hh", w_hh))
    casts = input.is_cpu and torch.is_autocast_enabled("cpu")
    if casts and variant is None and _backend._current != "dlops":  # torch keeps the weights that it cast, we do not
        return _torch(cell, input, h, c, w_ih, w_hh, b_ih, b_hh)
    if casts and cell in ("lstm", "gru"):  # torch's results have the state's type
        lowered: tuple[Any, ...] = autocast(input, h, c, w_ih, w_hh, b_ih, b_hh)
        with torch.autocast("cpu", enabled=False):
            made = cell_step(cell, lowered[0], *lowered[1:], variant=variant)  # type: ignore[misc]
        return tuple(t.to(s.dtype) for t, s in zip(made, (h, c)))
    input, h, c, w_ih, w_hh, b_ih, b_hh = autocast(input, h, c, w_ih, w_hh, b_ih, b_hh)
    tensors = (input, h, c, w_ih, w_hh, b_ih, b_hh)
    needs_grad = torch.is_grad_enabled() and _recorded(*tensors)
    if variant not in (None, "fused_cell", "gates"):
        raise ValueError(f'{cell}_cell: variant must be "fused_cell" or "gates": got {variant!r}')
    if variant == "fused_cell" and on_cuda(input):
        raise ValueError(f'{cell}_cell: variant "fused_cell" is for the CPU')

    def plan(use: bool, reason: str) -> Plan:
        macs, size = w_ih.numel() + w_hh.numel(), input.element_size()
        fused = variant == "fused_cell" or (variant is None and not needs_grad and not on_cuda(input))
        flops, name = 2 * input.shape[0] * macs, "recurrence" if fused else "gates"
        return make_plan(name, use, reason, device=input.device, variant="fused_cell", flops=flops, bytes=macs * size)

    reason = unsupported(input, tensors[1:])
    slower = _lstm_rules.slower_cell(cell, input, w_hh, needs_grad, on_cuda(input)) if variant is None else None
    if not choose(cell + "_cell", reason, plan, slower):
        if transforming():
            return compose_gates(F.linear(input, w_ih), F.linear(h, w_hh), b_ih, b_hh, h, c, *(None,) * 5, (cell, 0.0, 0.0, 1e-5))
        return _torch(cell, input, h, c, w_ih, w_hh, b_ih, b_hh)
    if variant != "gates" and not needs_grad and not on_cuda(input):
        keeps = type(w_hh) is Parameter and type(w_ih) is Parameter  # else the packing would cost more than the step
        if variant is not None or keeps or w_hh.numel() < UNKEPT or torch.compiler.is_compiling():
            return tuple(run_cell(input, w_ih, w_hh, b_ih, b_hh, h, c, cell))
    halves = F.linear(input, w_ih), F.linear(h, w_hh)
    step = (*halves, b_ih, b_hh, h if cell == "gru" else None, c, *(None,) * 5)
    if needs_grad:
        return Gates.apply((cell, 0.0, 0.0, 1e-5), *step)
    h, c, *_ = ops.gates.default(*step, cell, 0.0, 0.0, 1e-5, False)
    return (h, c) if cell == "lstm" else (h,)


def _torch(cell: str, input: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor | None) -> tuple[Tensor, ...]:
    made = getattr(torch, cell + "_cell")(input, h if c is None else (h, c), *weights)
    return made if cell == "lstm" else (made,)
