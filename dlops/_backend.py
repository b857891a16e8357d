"""Which implementation an op takes: ours or torch's, and the record of it that :func:`dlops.explain` reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch._C._functorch import peek_interpreter_stack as _peek_interpreter_stack
from torch.autograd import forward_ad

BACKENDS = ("auto", "dlops", "torch")


@dataclass(frozen=True)
class Plan:
    """What one op call would do. Sizes in bytes, work in floating-point operations."""

    op: str
    uses: str  # "dlops" or "torch"
    reason: str
    device: str
    variant: str = ""
    kernel: str = ""
    source: str = ""  # file:line
    tile: str = ""
    registers: int | None = None
    shared_memory: int | None = None
    spills: int | None = None
    flops: int = 0
    bytes: int = 0

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte of memory traffic."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> str:
        """"memory" below 8 flops a byte, where every current machine starves, else "compute"."""
        return "memory" if self.intensity < 8 else "compute"

    def __str__(self) -> str:
        text = f"{self.op}: {self.uses}"
        if self.kernel:
            text += f" {self.kernel} ({self.variant}, {self.device}) at {self.source}"
        return (
            f"{text}; {self.reason}; {self.flops:,} flops, {self.bytes:,} bytes, {self.bound} bound"
            + (f"; {self.registers} registers" if self.registers is not None else "")
        )


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


_current: str = _checked(os.environ.get("DLOPS_BACKEND") or "auto")
_recorder: list[Plan] | None = None


class backend:
    """``dlops.backend(name)`` chooses the implementation for every op, from now on; as a context manager it restores.

    ``"auto"`` takes our kernel where it is known to be the faster one and torch's otherwise; ``"dlops"`` forces ours and
    raises where it cannot; ``"torch"`` uses torch's. The environment variable ``DLOPS_BACKEND`` sets the initial one.
    ``dlops.backend.current()`` is the name in use.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        global _current
        self._previous = _current
        _current = _checked(name)

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *exc: object) -> None:
        global _current
        _current = self._previous

    @staticmethod
    def current() -> str:
        return _current


def choose(
    op: str,
    unsupported: str | None,
    make_plan: Callable[[bool, str], Plan],
    slower: str | None = None,
) -> bool:
    """Whether `op` takes our kernel. `unsupported`: why it cannot; `slower`: why torch is the faster one; None: neither.

    `make_plan` is called only while :func:`dlops.explain` records.

    Raises:
        RuntimeError: backend "dlops" and `unsupported`.
    """
    if _current == "dlops" and unsupported is not None:
        raise RuntimeError(f'{op}: {unsupported}; backend("auto") hands such a call to torch')
    use = unsupported is None and (_current == "dlops" or (_current == "auto" and slower is None))
    if _recorder is not None:
        if _current == "torch":
            reason = 'backend("torch")'
        else:
            reason = unsupported or (slower if not use else None) or "our kernel is the faster one here"
        _recorder.append(make_plan(use, reason))
    return use


def is_plain() -> bool:
    """Backend "auto", nothing recorded, no transform: a call that torch computes the faster may go straight to it."""
    return _current == "auto" and _recorder is None and not transforming()


def transforming() -> bool:
    """Inside torch.func.vmap / grad / jvp or forward-mode AD, where an op without those rules must be composed of torch's."""
    return _peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# torch.compile runs it where it stands in the traced function, within the transforms that are traced there.
transforming._dynamo_marked_constant = True  # type: ignore[attr-defined]
