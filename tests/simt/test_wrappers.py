"""The emulated instruction wrappers against models written from the PTX manual: tests/simt/wrappers.cpp."""

import pytest

from tests.simt import programs

MODES = {
    "plain": {},
    "reverse": {"DLOPS_SIMT_ORDER": "reverse"},
    "random": {"DLOPS_SIMT_ORDER": "random", "DLOPS_SIMT_SEED": "5"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["simt_wrappers", "simt_wrappers_race"])
def test_wrappers(target, mode):
    done = programs.run(programs.build(target), env=MODES[mode])
    failed = [line for line in done.stdout.splitlines() if not line.startswith("ok")]
    assert done.returncode == 0 and not failed, "\n".join([*failed, done.stderr])
    assert done.stdout.count("\n") > 130  # it came to its end
