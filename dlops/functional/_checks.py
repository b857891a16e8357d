"""Checks that the functions of several families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.overrides import has_torch_function

from dlops._backend import transforming

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


def uniform_tensors(input: Tensor, others: Sequence[Tensor | None], cuda: bool, what: str = "tensor") -> str | None:
    """Why kernels that want one device and one type, and have no rule for transforms, cannot take these tensors; None if they
    can. what: names the others in the message."""
    for t in others:
        if t is not None and t.device != input.device:
            return f"tensors on {input.device} and {t.device}"
        if t is not None and t.dtype is not input.dtype:
            return f"a {what} of {t.dtype} with an input of {input.dtype}"
    reason = supported_tensor(input, others, cuda)
    if reason is None and transforming():
        reason = "inside a torch.func transform or forward-mode AD"
    if reason is None and torch.jit.is_tracing():
        reason = "inside torch.jit.trace"
    return reason


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """torch's rule: under autocast convolutions, linear and recurrent layers run in the type that it names."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    wanted = torch.get_autocast_dtype(device)
    return tuple(t.to(wanted) if t is not None and t.dtype in DTYPES else t for t in tensors)
