"""What a user could have for free beside stock torch: torch.compile, an unthrottled MKL, zentorch, a kinder malloc.

On AMD CPUs the MKL inside torch takes slower code paths unless the processor calls itself an Intel one. A one-line
shared library, preloaded, answers that question with yes. It changes nothing else, but it must be there before torch
loads, so these baselines run in a process of their own (`python -m dlops.bench.worker`), where both sides are timed
again. zentorch is AMD's plugin for torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dlops.bench.machine import cpu_vendor

UNTHROTTLE_SOURCE = "int mkl_serv_intel_cpu_true(void){return 1;}\n"
UNTHROTTLE_LINE = (
    "echo 'int mkl_serv_intel_cpu_true(void){return 1;}' | cc -shared -fPIC -x c -o libunthrottle.so - "
    "&& export LD_PRELOAD=$PWD/libunthrottle.so"
)

# glibc hands large blocks back to the system on free and faults every page in again on the next call. 32 MiB is the
# highest threshold it accepts.
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

THROTTLED = 1.3  # where MKL throttles itself the preload gains a factor of two and more; the rest is noise

SGEMM = """
import time, torch
torch.set_num_threads(1)
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
def once():
    start = time.thread_time()
    torch.mm(a, b)
    return time.thread_time() - start
once()
print(2 * 1024**3 / min(once() for _ in range(15)))
"""


@dataclass(frozen=True)
class MklProbe:
    """FLOP/s of a 1024^3 fp32 matmul on one thread, as torch comes and with the preload; or why it was not tried."""

    stock: float | None = None
    unthrottled: float | None = None
    reason: str | None = None

    @property
    def throttled(self) -> bool:
        return self.stock is not None and self.unthrottled is not None and self.unthrottled > THROTTLED * self.stock

    def __str__(self) -> str:
        if self.stock is None or self.unthrottled is None:
            return f"not measured: {self.reason}"
        stock, unthrottled = (f"{flops / 1e9:.0f} GFLOP/s" for flops in (self.stock, self.unthrottled))
        verdict = "THROTTLES ITSELF" if self.throttled else "does not throttle itself"
        return f"{verdict} on this CPU (1024^3 fp32 matmul, one thread: {stock}, {unthrottled} with the preload)"


@lru_cache
def mkl_probe() -> MklProbe:
    """Measures, in subprocesses, whether torch's MKL throttles itself on this CPU (about 10 s)."""
    reason = no_preload_reason()
    if reason:
        return MklProbe(reason=reason)
    with tempfile.TemporaryDirectory() as folder:
        library = build_unthrottle(Path(folder))
        if library is None:
            return MklProbe(reason="no C compiler (cc) to build the one-line library with")
        # In turns, the best of each: a neighbour that wakes up meanwhile must not decide.
        runs = [_sgemm(environment) for environment in ({}, {"LD_PRELOAD": str(library)}) * 2]
    flops = [run for run in runs if run is not None]
    if len(flops) < len(runs):
        return MklProbe(reason="the matmul subprocess failed")
    return MklProbe(max(flops[0::2]), max(flops[1::2]))


def no_preload_reason() -> str | None:
    """Why an unthrottled MKL is no baseline here; None where it may be one."""
    if not torch.backends.mkl.is_available():
        return "this torch has no MKL"
    if cpu_vendor() == "GenuineIntel":
        return "an Intel CPU: MKL runs at full speed"
    if sys.platform != "linux":
        return "needs LD_PRELOAD, so Linux"
    if "mkl_serv" in os.environ.get("LD_PRELOAD", "") or "unthrottle" in os.environ.get("LD_PRELOAD", ""):
        return "the preload is already in place"
    return None


def build_unthrottle(folder: Path) -> Path | None:
    """Compiles the one-line library into `folder`; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source, library = folder / "unthrottle.c", folder / "libunthrottle.so"
    source.write_text(UNTHROTTLE_SOURCE)
    built = subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], capture_output=True)
    return library if built.returncode == 0 else None


def zentorch_installed() -> bool:
    return importlib.util.find_spec("zentorch") is not None


def compiled(function: Callable[[], object], backend: str = "inductor") -> Callable[[], object]:
    """`torch.compile` of a case's stock code, already compiled when this returns (20 s and more)."""
    torch.compiler.reset()  # the cases share code objects: without this the eighth runs into the recompile limit
    fast = torch.compile(function, backend=backend, dynamic=False)
    fast()
    return fast


def in_worker(
    ids: Iterable[str], *, environment: dict[str, str], seconds: float, threads: int, zentorch: bool = False
) -> dict[str, dict[str, float]]:
    """Times cases again on the CPU in a subprocess with `environment` set.

    Returns:
        case id -> {candidate: how many times slower than dlops}; empty when the worker failed.
    """
    command = [sys.executable, "-m", "dlops.bench.worker", "--seconds", str(seconds), "--threads", str(threads)]
    if zentorch:
        command.append("--zentorch")
    request = json.dumps(list(ids))
    done = subprocess.run(
        command, input=request, capture_output=True, text=True, env=_environment(environment), check=False
    )
    if done.returncode != 0:
        print(f"bench: a baseline process failed and is left out:\n{done.stderr[-2000:]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def _environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment with `changes`, and the package importable as it is here."""
    package_root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    preload = " ".join(filter(None, (changes.get("LD_PRELOAD"), os.environ.get("LD_PRELOAD"))))
    merged = os.environ | changes | {"PYTHONPATH": python_path}
    return merged | ({"LD_PRELOAD": preload} if preload else {})


def _sgemm(environment: dict[str, str]) -> float | None:
    done = subprocess.run(
        [sys.executable, "-c", SGEMM], capture_output=True, text=True, env=_environment(environment), check=False
    )
    return float(done.stdout) if done.returncode == 0 else None
