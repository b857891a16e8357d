"""diffusers in float64: the oracle of the scheduler tests."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

_MODULES = (
    "ddim",
    "ddpm",
    "dpmsolver_multistep",
    "euler_discrete",
    "euler_ancestral_discrete",
    "flow_match_euler_discrete",
)


class _Wide:
    """A module in which the name float32 means float64."""

    def __init__(self, module) -> None:
        self._module = module

    def __getattr__(self, name: str):
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def _float64_diffusers() -> Iterator[None]:
    """Inside, diffusers' schedulers compute their tables and steps in float64. Noise is still drawn in float32."""
    randn = importlib.import_module("diffusers.utils.torch_utils").randn_tensor

    def randn_tensor(shape, generator=None, device=None, dtype=None):
        return randn(shape, generator=generator, device=device, dtype=torch.float32).double()

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # torch.tensor(1.0) and the like
    with pytest.MonkeyPatch.context() as patch:
        for name in _MODULES:
            module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
            patch.setattr(module, "np", _Wide(np))
            patch.setattr(module, "torch", _Wide(torch))
            patch.setattr(module, "randn_tensor", randn_tensor)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@pytest.fixture
def float64_diffusers():
    """A context manager under which diffusers' schedulers are built, set up and stepped in float64."""
    return _float64_diffusers
