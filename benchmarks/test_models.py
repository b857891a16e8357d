import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("models"), ids=lambda case: case.id)
def test_models(case, run_case):
    run_case(case)
