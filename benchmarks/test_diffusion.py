import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("diffusion"), ids=lambda case: case.id)
def test_diffusion(case, run_case):
    run_case(case)
