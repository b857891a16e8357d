"""Tells what this installation has, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator

import torch

import dlops
from dlops._library import has_cuda_kernels
from dlops.bench import machine
from dlops.bench._text import columns
from dlops.bench.baselines import UNTHROTTLE_LINE, mkl_probe
from dlops.study import _golden, _runner

EXTRAS = {
    "diffusers": "parity tests and the baseline of the scheduler benchmarks",
    "lightning": "training in the demo and the courses",
    "sklearn": "digits, tables and photographs of the demo and the courses (package scikit-learn)",
    "matplotlib": "the pictures of the demo and the courses",
    "tqdm": "progress bars of dlops.diffusion.sample",
    "pytest_benchmark": "benchmarks/ under pytest (package pytest-benchmark)",
}

# csrc/simt/README.md says why.
NOT_PROVEN = (
    "unconfirmed wrappers' reading of the PTX manual, the inline assembly itself, memory order between blocks, "
    "spin loops, tensor-core rounding, fast-math error, register and launch limits, speed"
)

Line = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="skip the matmul measurement (about 10 s)")


def run(options: argparse.Namespace) -> int:
    lines = [*_versions(), *_native(), *_cpu(), *_gpu(), *_extras()]
    if not options.quick:
        lines += _mkl()
    print(columns(lines))
    return 0


def _versions() -> Iterator[Line]:
    yield "dlops", f"{dlops.__version__}, commit {machine.commit()}"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    yield "torch", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"


def _native() -> Iterator[Line]:
    for device in ("cpu", "cuda"):
        found = [row for row in dlops.kernels() if row.device == device]
        families = ", ".join(sorted({row.family for row in found}))
        if found:
            yield f"kernels, {device}", f"{len(found)} in {families}"
    if not has_cuda_kernels:
        first = "" if shutil.which("nvcc") else "install the CUDA toolkit (nvcc), then "
        yield "kernels, cuda", f"not built: {first}build again with DLOPS_CUDA=on"
    yield from _wrappers()


def _wrappers() -> Iterator[Line]:
    """Which of the instruction wrappers behave on a GPU as the simt runner plays them."""
    try:
        cases = {case["name"]: case["wrappers"] for case in _runner.module().conformance()}
    except ImportError:
        yield "simt runner", "not built: the CUDA kernels cannot run on this CPU"
        return
    confirmed, unconfirmed = _golden.confirmed_wrappers(cases)
    gpus = "; ".join(sorted(set(confirmed.values())))
    yield "CUDA wrappers", f"{len(confirmed)} confirmed on {gpus}" if confirmed else "confirmed on hardware: none yet"
    yield from _wrapped("", ", ".join(confirmed))
    yield from _wrapped("unconfirmed", ", ".join(unconfirmed))
    yield from _wrapped("not proven", f"by the simt runner: {NOT_PROVEN}")


def _wrapped(name: str, text: str) -> Iterator[Line]:
    for number, line in enumerate(textwrap.wrap(text, 100)):
        yield "" if number else name, line


def _cpu() -> Iterator[Line]:
    yield "CPU", f"{machine.cpu_model()}, {os.cpu_count()} cores"
    yield "instructions", f"{dlops.cpu_isa()}, of {', '.join(dlops.cpu_isas())} (DLOPS_CPU_ISA overrides)"


def _gpu() -> Iterator[Line]:
    driver, newest = machine.driver_version(), machine.driver_cuda()
    if driver is None and newest is None:
        yield "GPU", "no NVIDIA driver: CPU only"
        return
    if torch.version.cuda is None:
        yield "GPU", f"driver {driver}, but this torch is a build without CUDA: install one from pytorch.org"
        return
    wanted = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    # Within one major version every driver runs every build (CUDA's minor-version compatibility).
    if newest is not None and newest[0] < wanted[0]:
        have, need = ".".join(map(str, newest)), ".".join(map(str, wanted))
        yield "GPU", f"driver {driver} is TOO OLD: it runs CUDA {have}, this torch is built for {need}"
        yield "", f"update the driver, or install a torch built for CUDA {newest[0]}"
        return
    if not torch.cuda.is_available():
        yield "GPU", f"driver {driver} is there, but torch sees no GPU (CUDA_VISIBLE_DEVICES?)"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"GPU {index}",
            f"{properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB, driver {driver}",
        )


def _extras() -> Iterator[Line]:
    for module, use in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield "missing", f"{module}: {use}"


def _mkl() -> Iterator[Line]:
    probe = mkl_probe()
    yield "MKL", str(probe)
    if probe.throttled:
        yield "", "this lifts it, for every torch program:"
        yield "", UNTHROTTLE_LINE
