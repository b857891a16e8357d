import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("lstm"), ids=lambda case: case.id)
def test_lstm(case, run_case):
    run_case(case)
