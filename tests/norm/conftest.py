"""What the norm tests share: the error rule of the package and inputs that try a kernel's edges."""

from __future__ import annotations

import pytest
import torch

import dlops

# What a value that is rounded once to the type may be off by, relative to the largest value: the absolute term of the rule,
# for cases in which torch's own error happens to be almost nothing.
TINY = {torch.float32: 4e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def _ours():
    """Small inputs too go to our kernels."""
    with dlops.backend("dlops"):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def within_rule():
    """within_rule(ours, torchs, exact): the maximum and the mean error against float64 are at most twice torch's own in the
    same dtype, plus a tiny absolute term."""

    def check(ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, what: str = "") -> None:
        assert exact.dtype == torch.float64 and ours.dtype == torchs.dtype and ours.shape == exact.shape, what
        if ours.numel() == 0:
            return
        mine, yours = (ours.double() - exact).abs(), (torchs.double() - exact).abs()
        tiny = TINY[ours.dtype] * exact.abs().max()
        assert mine.max() <= 2 * yours.max() + tiny, (what, float(mine.max()), float(yours.max()), float(tiny))
        assert mine.mean() <= 2 * yours.mean() + tiny / 4, (what, float(mine.mean()), float(yours.mean()))

    return check
