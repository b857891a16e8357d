"""The specification against torch, in float64: every form of call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops.reference import conv as reference
from tests.conv.calls import SHAPES, Call, random_shape


@pytest.fixture(autouse=True)
def _torch():
    with dlops.backend("torch"):
        yield


def compare(shape, **more):
    made = Call(shape, torch.float64, **more)
    ours, theirs = made.exact(), made.torchs()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n} of {shape}: {m}")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    compare(SHAPES[name])


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 600), marks=pytest.mark.full)], ids=str)
def test_random_shapes(seeds):
    for seed in seeds:
        compare(random_shape(seed))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("name", ["3x3", "transposed 4x4"])
def test_activation_and_residual(name, activation):
    compare(SHAPES[name], activation=activation, residual=True)


def test_unbatched():
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((3, 6, 5), (4, 3, 3, 3), (4,)))
    torch.testing.assert_close(reference.convolution(x, w, b, 2, 1), F.conv2d(x, w, b, 2, 1))
    torch.testing.assert_close(
        reference.conv_transpose(x, w.transpose(0, 1), b, 2, 1), F.conv_transpose2d(x, w.transpose(0, 1), b, 2, 1)
    )


def test_nothing_in_it():
    x, w, b = torch.randn(0, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    torch.testing.assert_close(reference.convolution(x, w, b), F.conv2d(x, w, b))
    # Without channels the sum is empty and the bias remains. (torch gives a tensor without filters.)
    y = reference.convolution(torch.randn(2, 0, 5, 5), torch.randn(4, 0, 3, 3), b)
    torch.testing.assert_close(y, b.reshape(1, 4, 1, 1).expand(2, 4, 3, 3))


def test_half_types_round_once():
    x, w = torch.randn(2, 40, 7, 7), torch.randn(5, 40, 3, 3)
    for dtype in (torch.float16, torch.bfloat16):
        half = reference.convolution(x.to(dtype), w.to(dtype), padding=1)
        exact = reference.convolution(x.to(dtype).double(), w.to(dtype).double(), padding=1)
        assert half.dtype is dtype and (half.double() - exact).abs().max() <= 0.51 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_linear(shape):
    x, w, b, r = (torch.randn(s, dtype=torch.float64) for s in (shape, (6, 5), (6,), (*shape[:-1], 6)))
    for activation in reference.ACTIVATIONS:
        want = F.linear(x, w, b) + r
        want = want if activation is None else getattr(torch if activation in ("tanh", "sigmoid") else F, activation)(want)
        torch.testing.assert_close(reference.linear(x, w, b, activation, r), want)
    torch.testing.assert_close(reference.linear(x, w[0]), F.linear(x, w[0]))
