"""Every kernel test runs on the `device` axis: each CPU instruction-set level that this machine has, and its GPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

try:
    import dlops
    from dlops import _C
except ImportError as error:
    pytest.exit(f"dlops cannot be imported ({error}): run `make build` first", returncode=3)

try:
    import hypothesis
except ImportError:
    hypothesis = None  # its tests skip themselves: pytest.importorskip
else:
    # No deadline: the first call of an op may compile or load. Derandomised: the same examples on every run.
    hypothesis.settings.register_profile("dlops", deadline=None, derandomize=True, max_examples=50)
    hypothesis.settings.load_profile("dlops")

THREADS = 2  # more than one even where torch would take one, so that parallel regions are entered
HAS_CUDA = torch.cuda.is_available() and any(row["device"] == "cuda" for row in _C.kernels())


@dataclass(frozen=True)
class Device:
    """Where a test runs: torch_device "cpu" at instruction-set level `isa`, or torch_device "cuda" (isa None)."""

    torch_device: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.torch_device}:{self.isa}" if self.isa else self.torch_device


DEVICES = [Device("cpu", isa) for isa in _C.cpu_isas()] + [Device("cuda")] * HAS_CUDA


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    before = _C.cpu_isa()
    if request.param.isa:
        _C.set_cpu_isa(request.param.isa)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.set_num_threads(THREADS)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was tested (a header would not show under -q)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if torch.cuda.is_available() and not HAS_CUDA:
        gpu += " (the CUDA kernels are not built, so their tests did not run)"
    terminalreporter.write_line(
        f"dlops {dlops.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"CPU levels {' '.join(_C.cpu_isas())}, {THREADS} threads, {gpu}"
    )
