"""``dlops.explain``: which kernels a call would run, without running it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from dlops import _backend
from dlops._backend import Plan
from dlops._catalogue import find


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Plan]:
    """One :class:`Plan` for every dlops op that ``fn(*args, **kwargs)`` would call, in order.

    The call runs on fake tensors: shapes, dtypes and devices are real, nothing is computed, and a CUDA device need not be
    present. ``fn`` may be a function, a module or a bound method (whose object is copied, so that a scheduler's step
    counter does not move). A plan names the kernel, variant, device, tile, registers, shared memory, source line, flops,
    bytes and the bound, and why torch's would run if it would.

    Example::

        for plan in dlops.explain(dlops.functional.group_norm, torch.randn(2, 320, 64, 64), 32):
            print(plan)
    """
    owner = getattr(fn, "__self__", None)
    if inspect.ismethod(fn) and not isinstance(owner, type):
        fn = getattr(copy.copy(owner), fn.__name__)
    recorded: list[Plan] = []
    outer, _backend._recorder = _backend._recorder, recorded
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
            fn(*fake[0], **fake[1])
    finally:
        _backend._recorder = outer
    return recorded


def make_plan(
    op: str, use: bool, reason: str, *, device: torch.device, variant: str | None = None, flops: int = 0, bytes: int = 0
) -> Plan:
    """The plan of one call; our kernel's catalogue row fills in the rest."""
    row = find(op, variant or "", device.type) if use else None
    if row is None:
        return Plan(op, "dlops" if use else "torch", reason, str(device), flops=flops, bytes=bytes)
    return Plan(
        op,
        "dlops",
        reason,
        str(device),
        variant=row.variant,
        kernel=row.name,
        source=row.source,
        tile=row.tile,
        registers=row.registers,
        shared_memory=row.shared_memory,
        spills=row.spills,
        flops=flops,
        bytes=bytes,
    )
