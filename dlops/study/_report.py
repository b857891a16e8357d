"""What the simt runner says of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One kernel launch. Counts are over all blocks; None: not counted (memory traffic needs the race build)."""

    kernel: str
    grid: Index
    block: Index
    cluster: Index
    shared_bytes: int  # per block, static and dynamic
    barriers: int  # __syncthreads and the like, one per block and time
    warp_collectives: int  # shuffles, votes, mma, ... one per warp and time
    shared_requests: int | None  # loads and stores of shared memory, one per warp
    shared_passes: int | None  # the passes they took
    global_requests: int | None
    global_sectors: int | None  # of 32 bytes

    @property
    def bank_conflicts(self) -> int | None:
        """Passes beyond one per request."""
        if self.shared_passes is None or self.shared_requests is None:
            return None
        return self.shared_passes - self.shared_requests

    @property
    def sectors_per_request(self) -> float | None:
        """32-byte sectors that a warp's load or store of global memory touches: 4 where 32 neighbours take 4 bytes each."""
        return self.global_sectors / self.global_requests if self.global_sectors and self.global_requests else None


@dataclass(frozen=True)
class Traced:
    """One ``SIMT_TRACE(name, value)`` that the traced thread passed."""

    name: str
    value: float
    source: str  # file:line


@dataclass(frozen=True)
class Report:
    """What one emulated call did. ``print`` it."""

    op: str
    order: str
    seed: int
    race: bool
    launches: tuple[Launch, ...]
    findings: tuple[str, ...]  # empty: nothing wrong
    traced: tuple[Index, Index] | None  # block and thread
    trace: tuple[Traced, ...]

    def __str__(self) -> str:
        checked = "races checked" if self.race else "races not checked"
        parts = [f"{self.op} in the simt runner: {self.order} order, seed {self.seed}, {checked}"]
        if self.launches:
            parts.append(_columns([_HEAD, *map(_row, self.launches)]))
        if self.traced is not None:
            block, thread = self.traced
            parts.append(f"trace of block {block}, thread {thread}:" + ("" if self.trace else " nothing was recorded"))
            if self.trace:
                parts.append(_columns([(t.name, f"{t.value:.9g}", t.source) for t in self.trace], indent="  "))
        parts += [f"FINDING  {text}" for text in self.findings] or ["no findings"]
        return "\n".join(parts)


def make_launches(rows: Sequence[Mapping[str, Any]]) -> tuple[Launch, ...]:
    """The rows of ``_simt.end()["launches"]``."""
    return tuple(Launch(**row) for row in rows)


def make_trace(rows: Sequence[Mapping[str, Any]]) -> tuple[Traced, ...]:
    """The rows of ``_simt.end()["trace"]``."""
    return tuple(Traced(row["name"], row["value"], f"{row['file']}:{row['line']}") for row in rows)


_HEAD = (
    "kernel", "grid", "block", "shared bytes", "barriers", "collectives", "bank conflicts", "sectors / request",
)  # fmt: skip


def _row(launch: Launch) -> tuple[str, ...]:
    sectors = launch.sectors_per_request
    counts = (launch.shared_bytes, launch.barriers, launch.warp_collectives, launch.bank_conflicts)
    return (
        launch.kernel,
        _size(launch.grid),
        _size(launch.block),
        *("-" if count is None else f"{count:,}" for count in counts),
        "-" if sectors is None else f"{sectors:.1f}",
    )


def _size(size: Index) -> str:
    """(8, 1, 1) as "8", (8, 2, 1) as "8 x 2"."""
    kept = list(size)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return " x ".join(map(str, kept))


def _columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(indent + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
