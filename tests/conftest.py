"""Every kernel test runs on the `device` axis: each CPU instruction-set level that this machine has, the CUDA kernels in
the simt runner, and the GPU."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from contextlib import nullcontext
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
    """Where a test runs: torch_device "cpu" at instruction-set level `isa`; torch_device "cpu" with the CUDA kernels in the
    simt runner, its "plain" or its "race" build (`simt`); or torch_device "cuda"."""

    torch_device: str
    isa: str | None = None
    simt: str | None = None

    def __str__(self) -> str:
        if self.simt:
            return "simt" if self.simt == "plain" else f"simt:{self.simt}"
        return f"{self.torch_device}:{self.isa}" if self.isa else self.torch_device


SIMT_MODULES = {"plain": "dlops._simt", "race": "dlops._simt_race"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--simt",
        choices=("off", "plain", "race", "only-plain", "only-race"),
        default="plain",
        help="the build of the simt runner on the device axis; only-...: nothing else is on it. "
        "DLOPS_SIMT_ORDER and DLOPS_SIMT_SEED choose its order.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" not in metafunc.fixturenames:
        return
    only, _, build = metafunc.config.getoption("simt").rpartition("-")
    if only and not importlib.util.find_spec(SIMT_MODULES[build]):
        raise pytest.UsageError(f"--simt=only-{build}: {SIMT_MODULES[build]} is not built")
    devices = [Device("cpu", isa) for isa in _C.cpu_isas()] + [Device("cuda")] * HAS_CUDA
    if build != "off" and importlib.util.find_spec(SIMT_MODULES[build]):
        emulated = [Device("cpu", simt=build)]
        devices = emulated if only else devices[: len(_C.cpu_isas())] + emulated + devices[len(_C.cpu_isas()) :]
    metafunc.parametrize("device", devices, ids=str, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    before = _C.cpu_isa()
    if request.param.isa:
        _C.set_cpu_isa(request.param.isa)
    simt = request.param.simt
    with dlops.study.emulation(race=simt == "race") if simt else nullcontext():
        yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.set_num_threads(THREADS)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what was tested (a header would not show under -q)."""
    build = config.getoption("simt").rpartition("-")[2]
    simt = f"simt {build}" if build != "off" and importlib.util.find_spec(SIMT_MODULES[build]) else "no simt"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if torch.cuda.is_available() and not HAS_CUDA:
        gpu += " (the CUDA kernels are not built, so their tests did not run)"
    terminalreporter.write_line(
        f"dlops {dlops.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"CPU levels {' '.join(_C.cpu_isas())}, {simt}, {THREADS} threads, {gpu}"
    )
