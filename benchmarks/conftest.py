"""pytest-benchmark over the case list of dlops.bench.

    python -m pytest benchmarks                               # every case, one thread, against stock torch
    python -m pytest benchmarks --compile some --threads 2    # a few of them against torch.compile too

`python -m dlops bench` runs the same cases and prints the table of ratios, with the baselines that need a process of
their own. Nothing here asserts a time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dlops import bench


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dlops")
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption("--threads", type=int, default=1, help="torch threads on the CPU")
    group.addoption("--seconds", type=float, default=0.3, help="side-by-side timing per case")
    group.addoption("--compile", choices=("none", "some", "all"), default="none", help="time these compiled, too")
    group.addoption("--large", action="store_true", help="also the cases that take seconds per call, or are very many")


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest) -> dict[str, object]:
    """Where the figures are taken, once per run: environment and roof."""
    torch.set_num_threads(request.config.getoption("--threads"))
    roof = bench.roof(request.config.getoption("--device"))
    return bench.environment() | {"roof_flops": roof.flops, "roof_copy_bytes_per_s": roof.copy}


@pytest.fixture
def run_case(benchmark, where: dict[str, object], request: pytest.FixtureRequest) -> Callable[[bench.Case], None]:
    """Times a case side by side for `extra_info` (ratios, share of the roof), then ours alone for pytest-benchmark."""

    def run(case: bench.Case) -> None:
        device = torch.device(request.config.getoption("--device"))
        if not case.is_for(device, request.config.getoption("--large")):
            pytest.skip(f"only on {case.device}" if case.device not in (None, device.type) else "needs --large")
        which = request.config.getoption("--compile")
        compiled = which == "all" or (which == "some" and case.compile)
        row = bench.measure(case, device, seconds=request.config.getoption("--seconds"), compile=compiled)
        benchmark.extra_info.update(where | row.as_dict())
        benchmark.group = case.op
        ours = case.build(device).dlops

        def once() -> None:
            ours()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        seconds = row.result.medians["dlops"]
        calls = max(1, round(1e-3 / seconds))
        rounds = max(5, min(100, round(0.2 / (calls * seconds))))
        benchmark.pedantic(once, warmup_rounds=1, iterations=calls, rounds=rounds)

    return run
