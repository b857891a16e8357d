"""Lists every kernel of this build: variant, device, dtypes, tile, registers, shared memory, spills, source."""

from __future__ import annotations

import argparse

import dlops
from dlops.bench._text import columns

SHOWN = ("op", "variant", "device", "architectures", "dtypes", "tile", "registers", "shared_memory", "spills", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", help="only this family (diffusion, norm, ...)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this device")


def run(options: argparse.Namespace) -> int:
    """Returns 1 when nothing matches."""
    rows = [
        kernel
        for kernel in dlops.kernels()
        if options.family in (None, kernel.family) and options.device in (None, kernel.device)
    ]
    if not rows:
        print("no kernel matches" + (": this build has no CUDA kernels" if options.device == "cuda" else ""))
        return 1
    # Registers, shared memory and spills are known of CUDA kernels only: without those, no columns of blanks.
    head = [key for key in SHOWN if any(_shown(getattr(row, key)) for row in rows)]
    print(columns([head, *([_shown(getattr(row, key)) for key in head] for row in rows)]))
    return 0


def _shown(value: object) -> str:
    if value is None:
        return ""
    return " ".join(value) if isinstance(value, tuple) else str(value)
