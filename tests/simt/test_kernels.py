"""The runner's own test kernels: right results and no finding in every mode as they are, and caught with a bug in them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.simt import programs
from tests.simt.kernel_bugs import BUGS

PROGRAMS = ["pointwise", "flash", "gemm", "cluster", "proxy"]
MODES = [("plain", 1), ("reverse", 1), *(("random", seed) for seed in range(1, 9))]


@pytest.mark.parametrize("flavour", ["", "_race"], ids=["plain", "race"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_false_alarm(program, flavour):
    path = programs.build(f"simt_{program}{flavour}")
    for order, seed in MODES:
        done = programs.run(path, env={"DLOPS_SIMT_ORDER": order, "DLOPS_SIMT_SEED": str(seed)})
        assert done.returncode == 0, f"{order} {seed}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def planted(request):
    """The programs with their bugs, compiled side by side while the first ones run."""
    wanted = {
        item.callspec.params["bug"] for item in request.session.items if item.originalname == "test_bug_is_caught"
    }
    programs.build("simt_flash_race")  # the runner's objects, which the planted programs share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            bug: pool.submit(programs.plant, bug.name, bug.program, bug.old, bug.new) for bug in BUGS if bug in wanted
        }


@pytest.mark.planted
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.program}-{bug.name}")
def test_bug_is_caught(planted, bug):
    done = programs.run(planted[bug].result())
    if bug.finding:
        assert done.returncode == 2 and bug.finding in done.stdout, done.stdout + done.stderr
        assert f" tests/simt/kernels/{bug.program}.cuh:" in done.stdout, (
            f"the message names no line of the kernel: {done.stdout}"
        )
    else:
        assert done.returncode in (1, 2), f"nothing shows: {done.stdout}{done.stderr}"
