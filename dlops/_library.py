"""Loads the two native libraries: ``libdlops.so`` (``torch.ops.dlops``) and ``dlops._C`` (study and measurement)."""

from __future__ import annotations

from pathlib import Path

import torch  # before _C: torch's OpenMP runtime is the one that both must use

_LIBRARY = Path(__file__).with_name("libdlops.so")
if not _LIBRARY.exists():
    raise ImportError(
        f"dlops: {_LIBRARY.name} is missing beside {__file__}: build it with `pip install --no-build-isolation .` "
        "or, in a checkout, `make build`"
    )
torch.ops.load_library(str(_LIBRARY))

from dlops import _C  # noqa: E402  (needs libdlops.so, which needs torch)

#: The dispatcher ops.
ops = torch.ops.dlops

#: Whether this build has CUDA kernels.
has_cuda_kernels: bool = any(row["device"] == "cuda" for row in _C.kernels())


def cpu_isa(name: str | None = None) -> str:
    """The CPU instruction-set level in use: "generic", "avx2", "avx512" or "avx512bf16".

    With ``name``, use that level from now on (the environment variable ``DLOPS_CPU_ISA`` does so at start).

    Raises:
        ValueError: this CPU does not have the level.
    """
    if name is not None:
        _C.set_cpu_isa(name)
    return _C.cpu_isa()


def cpu_isas() -> list[str]:
    """Every CPU instruction-set level that this machine has, lowest first."""
    return _C.cpu_isas()


def empty_cache() -> int:
    """Frees idle scratch memory of the CPU kernels; returns the number of bytes."""
    return _C.empty_cache()
