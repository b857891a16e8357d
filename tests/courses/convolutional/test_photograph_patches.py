"""Row B2: what is for training and what for judging share no pixel; the measures of its checks."""

import pytest
import torch

from dlops.courses.convolutional.b2_alexnet import (
    HELD_OUT,
    SIDE,
    TRAINED,
    draw_patches,
    grid_patches,
    leak,
    loss,
    norm_error,
)
from dlops.models.vision.alexnet import AlexNet


@pytest.fixture
def places():
    """Two photographs whose three channels tell where each pixel is: which of the two, the row, the column."""
    row, column = torch.meshgrid(torch.arange(427.0), torch.arange(640.0), indexing="ij")
    return torch.stack([torch.stack([torch.full_like(row, k), row, column]) for k in (0.0, 1.0)])


def test_no_pixel_is_in_both(places):
    patches, labels = draw_patches(places, 300, torch.Generator().manual_seed(0))
    trained = (patches + 1) / 2
    assert patches.shape == (600, 3, SIDE, SIDE)
    assert trained[:, 2].max() < TRAINED
    assert torch.equal(trained[:, 0, 0, 0].long(), labels)
    assert trained[:, 1].max() == 426 or trained[:, 1].max() > 400  # down to the last rows
    patches, labels = grid_patches(places)
    held_out = (patches + 1) / 2
    assert patches.shape == (182, 3, SIDE, SIDE)
    assert held_out[:, 2].min() == HELD_OUT > trained[:, 2].max()
    assert torch.equal(held_out[:, 0, 5, 5].long(), labels)
    seen = held_out[:, 1] * 640 + held_out[:, 2]
    assert seen[:91].unique().numel() == 91 * SIDE * SIDE  # no pixel twice
    assert ((held_out[:, 1, 1:] - held_out[:, 1, :-1]) == 1).all()  # upright
    assert ((held_out[:, 2, :, 1:] - held_out[:, 2, :, :-1]) == 1).all()


def test_the_halves_are_halves():
    torch.manual_seed(0)
    image = torch.zeros(1, dtype=torch.float64)
    assert leak(AlexNet.from_preset("small").double(), image) == 0
    assert leak(AlexNet.from_preset("small", groups=1).double(), image) > 0.1


def test_the_normalisation_is_the_papers():
    assert norm_error(torch.Generator().manual_seed(0)) < 1e-12


def test_loss_sees_mirror_images():
    torch.manual_seed(0)
    network = AlexNet.from_preset("small", classes=2).eval()
    patches, labels = torch.rand(4, 3, SIDE, SIDE), torch.tensor([0, 1, 0, 1])
    values = {round(loss(network, patches, labels).item(), 9) for _ in range(12)}
    assert len(values) == 2
