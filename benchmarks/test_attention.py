import pytest

from dlops.bench import cases


@pytest.mark.parametrize("case", cases("attention"), ids=lambda case: case.id)
def test_attention(case, run_case):
    run_case(case)
