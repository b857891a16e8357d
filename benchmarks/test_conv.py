import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("conv"), ids=lambda case: case.id)
def test_conv(case, run_case):
    run_case(case)
