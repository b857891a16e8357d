"""A bug that is planted in the kernels, and how it must show: the race build reports it, or the numbers are wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import dlops
from dlops.study import planting
from dlops.study._runner import installed
from dlops.study.planting import Edit

#: Fewer instances to compile: the bugs are looked for in float32.
FLOAT32_ONLY = Edit(
    "csrc/cuda/vec.h",
    """    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
""",
    "    default: break;\n",
)
SECONDS = 60.0
TOLERANCE = 1e-3  # what the outputs, of order 1, may differ by from the CPU kernels'

#: A call of ops, always the same: it returns what they compute.
Call = Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Bug:
    """`edits` break a kernel that `call` runs; only the files named in `units` need to be compiled again."""

    name: str
    edits: Sequence[Edit]
    call: Call
    units: Sequence[str]
    tolerance: float = TOLERANCE

    def plant(self) -> Path:
        return planting.plant(self.name, self.edits, beside=[FLOAT32_ONLY], only=self.units)


def _poison_memory() -> None:
    """From now on freed memory is overwritten: a result that a bug leaves unwritten must not be found there, right, from the run
    that makes what is expected. (glibc's M_PERTURB; elsewhere nothing.)"""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-6, 0x81)


def symptom(call: Call, load: Callable[[], object], tolerance: float = TOLERANCE) -> str | None:
    """What is wrong with `call` in the runner's module that `load` gives, beside the CPU kernels; None: nothing.

    Runs in a process of its own."""

    def work() -> str | None:
        torch.set_num_threads(1)
        _poison_memory()
        with dlops.backend("dlops"):
            expected = call()
            try:
                with installed(load(), threads=1):
                    found = call()
            except RuntimeError as error:
                return f"finding: {error}"
        for i, (a, b) in enumerate(zip(found, expected)):
            if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"numerics: output {i} is off by {float((a - b).abs().max()):g}"
        return None

    try:
        return planting.in_child(work, SECONDS)
    except planting.Crashed as error:
        return f"crash: {error}"
