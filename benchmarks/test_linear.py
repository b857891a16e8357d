import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("linear"), ids=lambda case: case.id)
def test_linear(case, run_case):
    run_case(case)
