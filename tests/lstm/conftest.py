"""What the recurrent tests share. The calls and the error rule are in calls.py."""

from __future__ import annotations

import pytest
import torch

import dlops


@pytest.fixture(autouse=True)
def _ours():
    """Small inputs too go to our kernels."""
    with dlops.backend("dlops"):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
