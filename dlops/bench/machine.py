"""Where a figure was taken: everything that must stand beside it to be read later."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import dlops


def environment() -> dict[str, object]:
    """Commit, versions, CPU, GPU, threads, clocks and the malloc settings of this process, ready for JSON."""
    return {
        "dlops": dlops.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "isa": dlops.cpu_isa(),
        "cpu": cpu_model(),
        "cpu_mhz": cpu_mhz(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_clocks": gpu_clocks(),
        "driver": driver_version(),
        "malloc": {key: os.environ[key] for key in sorted(os.environ) if key.startswith("MALLOC_")},
        "preload": os.environ.get("LD_PRELOAD", ""),
    }


def commit() -> str:
    """Git commit of the source tree the package is imported from, with "+" when it has changes; "unknown" elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    name = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD").strip()
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no").strip()
    return (name + ("+" if changed else "")) if name else "unknown"


def cpu_model() -> str:
    """Model name with family and model number (virtual machines often shorten the name)."""
    fields = _cpuinfo()
    name = fields.get("model name", platform.processor() or platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name


def cpu_vendor() -> str:
    """ "AuthenticAMD", "GenuineIntel", ... or "" where the system does not tell."""
    return _cpuinfo().get("vendor_id", "")


def cpu_mhz() -> float | None:
    """Clock of the first core at this moment; None where the system does not tell."""
    value = _cpuinfo().get("cpu MHz")
    return float(value) if value else None


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, None without one."""
    try:
        found = re.search(r"Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    if found:
        return found.group(1)
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0].strip() or None


def driver_cuda() -> tuple[int, int] | None:
    """Newest CUDA version (major, minor) the installed driver runs, None without a driver."""
    try:
        version = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def gpu_clocks() -> dict[str, str] | None:
    """Current and highest SM and memory clock of the first GPU."""
    if not torch.cuda.is_available():
        return None
    keys = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
    values = _output("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader").split("\n")[0].split(",")
    return dict(zip(keys, (value.strip() for value in values), strict=False)) if len(values) == len(keys) else None


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
