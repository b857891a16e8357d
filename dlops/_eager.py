"""`torch.compiler.disable` that costs nothing where nothing is compiled: the original imports the compiler (1.5 s)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(fn: F) -> F:
    """The function, which `torch.compile` breaks its graph at instead of tracing it."""

    @functools.cache
    def disabled() -> Callable[..., Any]:
        return torch.compiler.disable(fn)

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else fn)(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]  # the compiler's own mark: do not inline this
    return cast(F, run)
