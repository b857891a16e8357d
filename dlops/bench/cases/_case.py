"""What a benchmark case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidates:
    """Nullary callables that do the same work. Each allocates its outputs itself, as a user's call does."""

    dlops: Callable[[], object]
    stock: Callable[[], object]
    compilable: Callable[[], object] | None = None  # what torch.compile is given; None: nothing to compile


@dataclass(frozen=True)
class Case:
    """One op at one shape and dtype. `build` makes its inputs (random, never zeros) on a device."""

    family: str
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    build: Callable[[torch.device], Candidates]
    flops: float  # floating-point operations, and 32-bit integer ones where noise is made
    bytes: float  # least traffic: every input read once, every output written once
    baseline: str = "torch"  # whose code `stock` is
    compile: bool = False  # one of the few that are compiled by default (20 s and more each)
    device: str | None = None  # "cpu" or "cuda": the only one that it is for
    large: bool = False  # left out unless asked for: seconds per call, or one of very many

    def is_for(self, device: torch.device | str, large: bool = False) -> bool:
        return self.device in (None, torch.device(device).type) and (large or not self.large)

    @property
    def id(self) -> str:
        shape = "x".join(str(size) for size in self.shape)
        return f"{self.op}-{shape}-{str(self.dtype).removeprefix('torch.')}"
