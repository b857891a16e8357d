"""The spatial transformer: known maps do what they must, to the last digits of float64, and it learns to undo one."""

from __future__ import annotations

import math

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.spatial_transformer import SpatialTransformer, transform


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theta(rows, n: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).expand(n, 2, 3)


def test_fresh_is_the_identity():
    image = images(3, 3, 32, 32)
    torch.testing.assert_close(SpatialTransformer().double()(image), image, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, -1, 0], [1, 0, 0]], lambda x: x.rot90(1, (2, 3))),
        ([[-1, 0, 0], [0, -1, 0]], lambda x: x.rot90(2, (2, 3))),
        ([[-1, 0, 0], [0, 1, 0]], lambda x: x.flip(3)),
        ([[1, 0, 2 * 3 / 8], [0, 1, 0]], lambda x: torch.cat([x[..., 3:], x[..., -1:].expand(-1, -1, -1, 3)], 3)),
    ],
    ids=["quarter turn", "half turn", "mirror", "three pixels"],
)
def test_known_maps(rows, expected):
    image = images(2, 2, 8, 8)
    torch.testing.assert_close(transform(image, theta(rows, 2)), expected(image), rtol=0, atol=1e-12)


def test_turn_is_that_of_scipy():
    """By 30 degrees about the middle; inside, where what is outside the image does not matter."""
    ndimage = pytest.importorskip("scipy.ndimage")
    image, angle = images(1, 1, 15, 15), math.pi / 6
    cosine, sine = math.cos(angle), math.sin(angle)
    found = transform(image, theta([[cosine, -sine, 0], [sine, cosine, 0]], 1))[0, 0]
    # scipy reads (row, column) = matrix (row, column) + offset
    matrix = torch.tensor([[cosine, sine], [-sine, cosine]])
    offset = 7 - matrix.double() @ torch.tensor([7.0, 7.0], dtype=torch.float64)
    expected = torch.from_numpy(ndimage.affine_transform(image[0, 0].numpy(), matrix.double(), offset.numpy(), order=1))
    torch.testing.assert_close(found[4:11, 4:11], expected[4:11, 4:11], rtol=0, atol=1e-6)


def test_gradients():
    """Of the sampler, equations 6 and 7: to the image and to theta, away from the kinks of bilinear interpolation."""
    image = images(1, 1, 5, 5).requires_grad_()
    at = theta([[0.9, 0.13, 0.07], [-0.11, 0.8, 0.05]], 1).clone().requires_grad_()
    torch.autograd.gradcheck(transform, (image, at))


def test_learns_to_turn_back():
    """From three blobs turned by 20 degrees, gradient descent on theta alone finds the turn."""
    line = torch.linspace(-1, 1, 32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    blobs = ((0.4, 0.0, 1.0), (-0.3, 0.3, 0.7), (-0.1, -0.5, 0.4))  # x, y, height
    upright = sum(height * torch.exp(-12 * ((x - a) ** 2 + (y - b) ** 2)) for a, b, height in blobs)[None, None]
    angle = math.radians(20)
    turn = torch.tensor([[[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]])
    turned = transform(upright, turn)
    network = SpatialTransformer(channels=1)
    optimiser = torch.optim.Adam([network.theta.bias], lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        (network(turned) - upright).square().sum().backward()
        optimiser.step()
    found = network.parameters_of(turned)[0, :, :2].detach()
    assert math.degrees(math.atan2(found[0, 1] - found[1, 0], found[0, 0] + found[1, 1])) == pytest.approx(20, abs=4)


def test_same_as_plain_torch():
    network = SpatialTransformer()
    torch.nn.init.normal_(network.theta.weight, std=0.01)
    plain, image = stock(network), torch.randn(2, 3, 32, 32)
    assert network.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(network(image), plain(image), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: SpatialTransformer(side=16), "side must leave 2 halvings and 5x5 convolutions room: got 16"),
        (
            lambda: SpatialTransformer()(torch.zeros(1, 3, 32, 30)),
            "SpatialTransformer: image must be 3x32x32: got 3x32x30",
        ),
        (lambda: transform(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)), r"theta must be \[2, 2, 3\]: got \[2, 3\]"),
    ],
)
def test_rejects(run, message):
    with pytest.raises(ValueError, match=message):
        run()
