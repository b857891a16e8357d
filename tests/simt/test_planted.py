"""Every bug that is planted in the kernels is found; in the kernels as they are nothing is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from dlops.study import planting
from tests.attention import planted as attention
from tests.conv import planted_cuda, planted_implicit
from tests.diffusion import planted as diffusion
from tests.lstm import planted as lstm
from tests.lstm import planted_persistent
from tests.norm import planted as norm
from tests.simt.bugs import TOLERANCE, symptom

race = pytest.importorskip("dlops._simt_race", reason="the race build of the simt runner is not built")

FAMILIES = (attention, planted_cuda, planted_implicit, diffusion, lstm, planted_persistent, norm)
BUGS = [bug for family in FAMILIES for bug in family.BUGS]
TOLERANCES = attention.TOLERANCES | planted_implicit.TOLERANCES | lstm.TOLERANCES | planted_persistent.TOLERANCES


@pytest.fixture(scope="module")
def modules(request):
    """The bugs' modules, compiled side by side while the first ones are tested."""
    tests = [item for item in request.session.items if getattr(item, "originalname", "") == "test_is_caught"]
    wanted = {item.callspec.params["bug"].name for item in tests}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {bug.name: pool.submit(bug.plant) for bug in BUGS if bug.name in wanted}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.planted
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_is_caught(modules, bug):
    path = modules[bug.name].result()
    found = symptom(bug.call, lambda: planting.load(path), bug.tolerance)
    assert found is not None, f"{bug.name}: neither the race build nor the numbers show it"
    print(f"{bug.name}: {found}")


@pytest.mark.parametrize("call", [call for family in FAMILIES for call in family.CALLS], ids=lambda call: call.__name__)
def test_clean(call):
    assert symptom(call, lambda: race, TOLERANCES.get(call, TOLERANCE)) is None
