"""The catalogue of kernels: what the native library registers, joined with what ptxas said of each CUDA kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dlops._library import _C


@dataclass(frozen=True)
class Kernel:
    """One kernel variant. Memory in bytes; ``resources`` has one entry per CUDA architecture (from ``ptxas -v``)."""

    op: str
    family: str
    variant: str
    device: str
    architectures: tuple[str, ...]
    dtypes: tuple[str, ...]
    tile: str
    name: str
    source: str  # file:line
    dynamic_shared: int = 0
    resources: dict[str, dict[str, int]] = field(default_factory=dict)

    def _largest(self, key: str) -> int | None:
        return max((r[key] for r in self.resources.values()), default=None)

    @property
    def registers(self) -> int | None:
        """Registers per thread, the most over dtypes and architectures; None on the CPU."""
        return self._largest("registers")

    @property
    def shared_memory(self) -> int | None:
        """Static and dynamic shared memory per block."""
        static = self._largest("shared_static")
        return None if static is None else static + self.dynamic_shared

    @property
    def spills(self) -> int | None:
        """Bytes of register spills, stores and loads."""
        return self._largest("spills")


def _resources() -> dict[str, dict[str, dict[str, int]]]:
    """kernel function name -> architecture -> the largest figures over its template instances."""
    path = Path(__file__).with_name("kernel_resources.json")
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in json.loads(path.read_text()) if path.exists() else []:
        name = row["kernel"].split("(")[0].split("<")[0].split("::")[-1].split(" ")[-1]
        entry = found.setdefault(name, {}).setdefault(row["architecture"], {})
        spills = row["spill_stores"] + row["spill_loads"]
        for key, value in (("registers", row["registers"]), ("shared_static", row["shared_static"]), ("spills", spills)):
            entry[key] = max(entry.get(key, 0), value)
    return found


@lru_cache(maxsize=1)
def kernels() -> list[Kernel]:
    """Every kernel and variant in this build: op, family, variant, device, architectures, dtypes, tile, registers, shared
    memory, spills and source file:line. CPU kernels list the instruction sets they were compiled for."""
    resources = _resources()
    merged: dict[tuple[str, str, str, str], dict] = {}
    for row in _C.kernels():
        entry = merged.setdefault((row["op"], row["variant"], row["device"], row["name"]), {**row, "architectures": []})
        entry["architectures"] += row["architectures"].split()
    return [
        Kernel(
            op=row["op"],
            family=row["family"],
            variant=row["variant"],
            device=row["device"],
            architectures=tuple(dict.fromkeys(row["architectures"])),
            dtypes=tuple(row["dtypes"].split()),
            tile=row["tile"],
            name=row["name"],
            source=f"{row['file']}:{row['line']}",
            dynamic_shared=row["dynamic_shared"],
            resources=resources.get(row["name"], {}) if row["device"] == "cuda" else {},
        )
        for row in merged.values()
    ]


def find(op: str, variant: str, device: str) -> Kernel | None:
    """The kernel that serves `op` with `variant` ("" is the default rung) on a device type."""
    rows = [k for k in kernels() if k.op == op and k.device == device]
    wanted = variant or "fused"
    return next((k for k in rows if k.variant == wanted), None)
