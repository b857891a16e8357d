import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("norm"), ids=lambda case: case.id)
def test_norm(case, run_case):
    run_case(case)
