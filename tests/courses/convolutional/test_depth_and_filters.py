"""Rows B3 and B9: the shift of the digits, the measures of the checks."""

import torch

from dlops.courses.convolutional.b3_depth import FULL, SMALL, loss, shifted
from dlops.courses.convolutional.b9_filters import derivative_error, learner, patches_of, spectral_error
from dlops.courses.data.photographs import load_photographs
from dlops.models.vision import filters


def test_a_shift_moves_the_centre_by_less_than_half_a_pixel():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[..., 3, 4] = 1
    at = torch.arange(8.0, dtype=torch.float64)
    torch.manual_seed(0)
    centres = []
    for _ in range(50):
        moved = shifted(image)[0, 0]
        torch.testing.assert_close(moved.sum().item(), 1.0)
        centres.append([(moved.sum(1) @ at).item() - 3, (moved.sum(0) @ at).item() - 4])
    low, high = torch.tensor(centres).aminmax(dim=0)
    assert low.min() >= -0.5 and high.max() <= 0.5
    assert low.max() < -0.4 and high.min() > 0.4  # both ways, along both axes


def test_every_small_network_learns_a_step():
    torch.manual_seed(0)
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    for make in SMALL.values():
        network = make()
        loss(network, images, labels).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert network.eval()(images).shape == (4, 10)


def test_published_counts():
    with torch.device("meta"):
        for make, published in FULL.values():
            assert sum(p.numel() for p in make().parameters()) == published


def test_fourier_and_derivatives_find_a_flipped_kernel(monkeypatch):
    image = torch.rand(1, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    assert spectral_error(image) < 1e-12
    assert derivative_error("cpu") < 1e-12
    right = filters.Filter.__init__

    def flipped(self, kernel, *args, **kwargs):
        right(self, kernel.flip(0, 1), *args, **kwargs)

    monkeypatch.setattr(filters.Filter, "__init__", flipped)
    assert spectral_error(image) > 0.1
    assert derivative_error("cpu") > 1


def test_patches_are_normalised_pieces_of_the_photographs():
    patches = patches_of(load_photographs())
    assert patches.shape == (520, 1, 32, 32)
    torch.testing.assert_close(torch.stack([patches.mean(), patches.std()]), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    assert sum(p.numel() for p in learner().parameters() if p.requires_grad) == 9
