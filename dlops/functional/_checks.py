"""Checks that the functions of several families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.overrides import has_torch_function

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, Parameter, FakeTensor)


def check_tensors(op: str, *arguments: tuple[str, object]) -> None:
    """TypeError for an argument that is no tensor."""
    for name, value in arguments:
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor: got {type(value).__name__}")


def check_optional(op: str, *arguments: tuple[str, object]) -> None:
    """TypeError for an argument that is neither None nor a tensor."""
    check_tensors(op, *((name, value) for name, value in arguments if value is not None))


def supported_tensor(input: Tensor, others: Sequence[Tensor | None], cuda: bool) -> str | None:
    """Why no kernel of ours can take these tensors, whatever the op; None if one may."""
    if input.dtype not in DTYPES:
        return f"{input.dtype} has no kernel (float32, float16 and bfloat16 have)"
    if not input.is_cpu and not (input.is_cuda and cuda):
        return f"no kernels for device {input.device.type!r} in this build"
    for t in (input, *others):
        if t is None:
            continue
        if t.layout is not torch.strided:
            return f"layout {t.layout} has no kernel"
        if type(t) not in _PLAIN and has_torch_function((t,)):
            return f"{type(t).__name__} overrides torch's functions"
    return None
