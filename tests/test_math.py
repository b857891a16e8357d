"""csrc/cpu/math.h: the error of every function over its range, and equal bits on every level.

`pytest tests/test_math.py -s` prints the table that csrc/cpu/README.md shows.
"""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops import _C

# name: (float64 oracle, range, largest error: "ulp" relative to the spacing of float32 at the exact value, or "abs")
FUNCTIONS = {
    "exp2": (torch.exp2, (-126, 127), "ulp", 1.1),
    "exp": (torch.exp, (-87, 88), "ulp", 1.2),
    "log": (torch.log, (1e-30, 1e30), "ulp", 1.1),
    "sigmoid": (torch.sigmoid, (-80, 80), "abs", 1.2e-7),
    "silu": (torch.nn.functional.silu, (-80, 80), "abs", 4e-6),
    "tanh": (torch.tanh, (-20, 20), "ulp", 2.0),
    "sin": (torch.sin, (-8192, 8192), "abs", 1.5e-7),
    "cos": (torch.cos, (-8192, 8192), "abs", 1.5e-7),
}


def samples(low: float, high: float) -> torch.Tensor:
    """Evenly spaced and logarithmically spaced points of the range."""
    even = torch.linspace(low, high, 1 << 20, dtype=torch.float64)
    small = torch.logspace(-12, 0, 1 << 18, dtype=torch.float64)
    near = torch.cat([small * high, -small * abs(low) if low < 0 else low / small.clamp(min=low)])
    x = torch.cat([even, near]).float()
    return x[(x >= low) & (x <= high)]


def evaluate(name: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    _C.math(name, x, y)
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(name):
    oracle, (low, high), unit, bound = FUNCTIONS[name]
    x = samples(low, high)
    exact = oracle(x.double())
    error = (evaluate(name, x).double() - exact).abs()
    if unit == "ulp":
        spacing = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=2.0**-126))) - 23)
        error = error / spacing
    print(f"\n| {name} | [{low:g}, {high:g}] | {error.max():.2g} {unit} |")
    assert error.max() <= bound


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_on_every_level(name):
    x = samples(*FUNCTIONS[name][1])[:: 7].contiguous()
    before = dlops.cpu_isa()
    results = []
    for isa in dlops.cpu_isas():
        dlops.cpu_isa(isa)
        results.append(evaluate(name, x))
    dlops.cpu_isa(before)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize(
    "name, value, expected",
    [("exp2", -1e30, 2.0**-126), ("sigmoid", -1e30, 0.0), ("sigmoid", 1e30, 1.0), ("silu", -1e30, 0.0), ("tanh", 1e30, 1.0),
     ("tanh", -1e30, -1.0), ("exp2", 0.0, 1.0), ("exp", 0.0, 1.0), ("log", 1.0, 0.0), ("tanh", -0.0, -0.0)],
)  # fmt: skip
def test_special_values(name, value, expected):
    assert evaluate(name, torch.tensor([value]))[0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["exp2", "exp", "sigmoid", "silu", "tanh"])
def test_nan_stays(name):
    assert evaluate(name, torch.tensor([float("nan")]))[0].isnan()


def test_unknown_function():
    with pytest.raises(ValueError, match="unknown function 'erf'"):
        _C.math("erf", torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="must be float32"):
        _C.math("exp", torch.zeros(1).double(), torch.zeros(1).double())
