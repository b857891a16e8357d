"""Filters: beside scipy.ndimage in every padding mode, and what their weights must do by themselves, in float64."""

import math

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.filters import (
    Filter,
    Separable,
    box,
    emboss,
    gabor,
    gaussian,
    laplacian,
    sharpen,
    sobel,
    unsharp,
)

SCIPY = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}


def image(height=20, width=17, channels=3, dtype=torch.float64):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("mode", SCIPY)
@pytest.mark.parametrize("name", ["sobel_x", "sobel_y", "laplacian", "box", "gaussian"])
def test_equals_scipys_own(name, mode):
    ndimage = pytest.importorskip("scipy.ndimage")
    theirs = {
        "sobel_x": lambda plane: ndimage.sobel(plane, 1, mode=SCIPY[mode]),
        "sobel_y": lambda plane: ndimage.sobel(plane, 0, mode=SCIPY[mode]),
        "laplacian": lambda plane: ndimage.laplace(plane, mode=SCIPY[mode]),
        "box": lambda plane: ndimage.uniform_filter(plane, 5, mode=SCIPY[mode]),
        "gaussian": lambda plane: ndimage.gaussian_filter(plane, 1.5, mode=SCIPY[mode]),
    }[name]
    kwargs = {"padding_mode": mode, "dtype": torch.float64}
    made = Separable(gaussian(1.5), **kwargs) if name == "gaussian" else Filter.from_preset(name, **kwargs)
    found = made(image())
    for sample, planes in zip(found, image()):
        for got, plane in zip(sample, planes):
            torch.testing.assert_close(got, torch.from_numpy(theirs(plane.numpy())), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", SCIPY)
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_equals_scipys_correlation(mode, dilation):
    """A kernel without symmetry, wider than high, with zeros between its numbers where scipy has no dilation."""
    ndimage = pytest.importorskip("scipy.ndimage")
    kernel = torch.arange(15.0, dtype=torch.float64).view(3, 5).sin()
    spread = torch.zeros(2 * dilation + 1, 4 * dilation + 1, dtype=torch.float64)
    spread[::dilation, ::dilation] = kernel
    found = Filter(kernel, channels=1, padding_mode=mode, dilation=dilation, dtype=torch.float64)(image(channels=1))
    for got, plane in zip(found, image(channels=1)):
        expected = ndimage.correlate(plane[0].numpy(), spread.numpy(), mode=SCIPY[mode])
        torch.testing.assert_close(got[0], torch.from_numpy(expected), rtol=0, atol=1e-13)


def test_channels_do_not_mix():
    made = Filter.from_preset("sharpen", dtype=torch.float64)
    whole = made(image())
    alone = made(image() * torch.tensor([0.0, 1.0, 0.0])[:, None, None])
    assert torch.equal(alone[:, 1], whole[:, 1])
    assert not alone[:, 0].any()


def test_separable_is_the_outer_product():
    column, row = gaussian(2.0), gaussian(1.0)
    settings = {"padding_mode": "replicate", "dtype": torch.float64}
    parts = Separable(column, row, **settings)(image())
    whole = Filter(torch.outer(column, row), **settings)(image())
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


def test_gaussian_has_its_deviation():
    for sigma in (1.0, 2.0, 3.7):
        values = gaussian(sigma, truncate=8.0)
        x = torch.arange(len(values), dtype=torch.float64) - len(values) // 2
        assert values.sum().item() == pytest.approx(1, abs=1e-14)
        assert (values * x * x).sum().sqrt().item() == pytest.approx(sigma, rel=1e-6)  # a sampled Gaussian keeps it


def test_sums():
    """What keeps a plain surface, and what makes it black."""
    for kernel in (box(7), sharpen(), unsharp(2.0, 1.5), emboss()):
        assert kernel.sum().item() == pytest.approx(1, abs=1e-13)
    for kernel in (sobel(0), sobel(1), laplacian(), gabor(0), gabor(30, phase=0.4)):
        assert abs(kernel.sum().item()) < 1e-13


def test_unsharp_masking_is_what_it_says():
    blurred = Separable(gaussian(2.0), dtype=torch.float64)(image())
    expected = image() + 1.5 * (image() - blurred)
    torch.testing.assert_close(Filter.from_preset("unsharp", dtype=torch.float64)(image()), expected, rtol=0, atol=1e-13)


def test_derivatives_of_a_parabola():
    y, x = torch.meshgrid(*[torch.arange(9.0, dtype=torch.float64)] * 2, indexing="ij")
    surface = (3 * x + 2 * y + x * x + y * y)[None, None]
    for kernel, expected in ((sobel(1), 8 * (3 + 2 * x)), (sobel(0), 8 * (2 + 2 * y)), (laplacian(), torch.full_like(x, 4))):
        found = Filter(kernel, channels=1, dtype=torch.float64)(surface)[0, 0]
        torch.testing.assert_close(found[1:-1, 1:-1], expected[1:-1, 1:-1])


def test_gabor_answers_to_its_own_wave():
    """Most to a wave of its direction and length; turning it by 90 degrees turns its kernel."""
    y, x = torch.meshgrid(*[torch.arange(64.0, dtype=torch.float64)] * 2, indexing="ij")
    wave = torch.cos(2 * math.pi * x / 8)[None, None]
    energy = [Filter(gabor(angle), channels=1, dtype=torch.float64)(wave).square().mean().item() for angle in (0, 45, 90)]
    assert energy[0] > 100 * max(energy[1:])
    diagonal = torch.cos(2 * math.pi * (x + y) / math.sqrt(2) / 8)[None, None]  # falls and rises along x = y
    filters = [Filter(gabor(angle), channels=1, dtype=torch.float64) for angle in (45, -45)]
    # away from the border, where padding bends the wave
    ours, across = (filter(diagonal)[..., 16:-16, 16:-16].square().mean() for filter in filters)
    assert ours > 100 * across
    torch.testing.assert_close(gabor(90), gabor(0).T, rtol=0, atol=1e-14)
    torch.testing.assert_close(gabor(45), gabor(45).T, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", SCIPY)
def test_ours_and_torch_nn_agree(mode):
    made = Filter.from_preset("gabor_45", padding_mode=mode)
    pixels = image(32, 40, dtype=torch.float32)
    torch.testing.assert_close(made(pixels), stock(made)(pixels), rtol=0, atol=1e-5)
    assert list(made.state_dict()) == list(stock(made).state_dict()) == ["conv.weight"]


def test_frozen_until_told():
    made = Filter.from_preset("sobel_x")
    assert not any(p.requires_grad for p in made.parameters())
    made.requires_grad_()
    made(image(dtype=torch.float32)).sum().backward()
    assert made.conv.weight.grad.shape == (3, 1, 3, 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"Filter: kernel must be \[kH, kW\] with both odd: got \[2, 3\]"):
        Filter(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"Filter: kernel must be \[kH, kW\] with both odd: got \[3\]"):
        Filter(torch.ones(3))
    with pytest.raises(ValueError, match="Filter: padding_mode must be one of zeros, reflect, replicate, circular: got 'mirror'"):
        Filter(sobel(0), padding_mode="mirror")
    smallest = r"\[N, 3, H, W\] with H at least 4 and W at least 4 for padding_mode 'reflect': got \[2, 3, 3, 9\]"
    with pytest.raises(ValueError, match=smallest):
        Filter(box(7))(torch.ones(2, 3, 3, 9))
    with pytest.raises(ValueError, match=r"Filter: image must be \[N, 3, H, W\].* got \[2, 1, 9, 9\]"):
        Filter(box(7))(torch.ones(2, 1, 9, 9))
    assert Filter(box(7), padding_mode="zeros")(torch.ones(2, 3, 1, 1)).shape == (2, 3, 1, 1)
