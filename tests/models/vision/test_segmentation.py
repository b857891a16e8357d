"""FCN, U-Net and the Dice coefficient: sizes, published parameter counts, shifts, what they do where theory says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import dlops
from dlops.bench.stock import stock
from dlops.models.vision.segmentation import FCN, SegmentationUNet, _middle, bilinear_kernel, dice

TINY_FCN = {
    "channels": 2,
    "classes": 3,
    "widths": (4, 4, 6, 6, 6),
    "convolutions": (1, 1, 1, 1, 1),
    "head": 8,
    "head_size": 3,
}


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def seeded(make, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_unet_of_the_paper():
    """Figure 1: 572 -> 388, 23 convolutions; their parameters add up to 31,030,658 for one channel and two classes."""
    with torch.device("meta"):
        network = SegmentationUNet.from_preset("paper")
        assert network(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert parameters(network) == 31_030_658
    layers = (dlops.nn.Conv2d, dlops.nn.ConvTranspose2d)
    assert sum(isinstance(module, layers) for module in network.modules()) == 23


def test_fcn_of_the_paper():
    """Table 1 says 134 M: VGG-16's 14,714,688, fc6 102,764,544, fc7 16,781,312, scores of 21 classes 86,037, interpolation."""
    with torch.device("meta"):
        network = FCN.from_preset("paper", stride=32)
    assert parameters(network) == 14_714_688 + 102_764_544 + 16_781_312 + 86_037 + 21 * 64 * 64


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_fcn_shape(stride):
    network = FCN(**TINY_FCN, stride=stride)
    assert network(torch.randn(2, 2, 64, 32)).shape == (2, 3, 64, 32)
    assert len(network.scores) == {32: 1, 16: 2, 8: 3}[stride]


@pytest.mark.parametrize(
    ("settings", "side", "left"),
    [
        ({}, 44, 4),
        ({}, 48, 8),
        ({"padded": True}, 4, 4),
        ({"padded": True}, 12, 12),
        ({"padded": True, "normed": True}, 8, 8),
    ],
)
def test_unet_shape(settings, side, left):
    network = seeded(lambda: SegmentationUNet(classes=3, widths=(4, 4, 6), **settings))
    assert network(torch.randn(2, 1, side, side + 4)).shape == (2, 3, left, left + 4)


def shift_gap(network, image, step: int, margin: int) -> float:
    """By how much the logits of `image` moved by `step` differ from the logits moved by `step`, `margin` from the edges."""
    with torch.no_grad():
        still, moved = network(image[..., :-step, :-step]), network(image[..., step:, step:])
    inside = slice(margin, still.shape[-1] - margin - step)
    ahead = slice(margin + step, still.shape[-1] - margin)
    assert inside.stop > inside.start
    return (still[..., ahead, ahead] - moved[..., inside, inside]).abs().max().item()


def test_unet_moves_with_its_image():
    """By the stride of its bottom, exactly; by one pixel, not: max pooling sees another grid."""
    network = seeded(lambda: SegmentationUNet(widths=(4, 4, 6))).double()
    image = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    assert shift_gap(network, image, 4, 0) < 1e-12
    network = seeded(lambda: SegmentationUNet(widths=(4, 4, 6), padded=True, normed=True)).double()
    image = torch.randn(1, 1, 68, 68, dtype=torch.float64)
    assert shift_gap(network, image, 4, network.reach) < 1e-12
    with torch.no_grad():
        assert not torch.allclose(
            network(image.roll(1, 2)).roll(-1, 2)[..., 28:40, 28:40], network(image)[..., 28:40, 28:40]
        )


def test_skips_are_cropped_in_the_middle():
    places = torch.arange(6.0)
    assert _middle(places[:, None] * 10 + places, torch.empty(4, 2)).tolist() == [
        [12, 13],
        [22, 23],
        [32, 33],
        [42, 43],
    ]


def test_fcn_moves_with_its_image():
    network = seeded(lambda: FCN(**TINY_FCN)).double()
    with torch.no_grad():
        for score in network.scores:
            score.weight.normal_(generator=torch.Generator().manual_seed(1))
    image = torch.randn(1, 2, 416, 416, dtype=torch.float64)
    # a logit sees 62 pixels around it through convolutions and poolings, 32 through fc6, 64 through the interpolations
    assert shift_gap(network, image, 32, 160) < 1e-12


@pytest.mark.parametrize("factor", [2, 8])
def test_upsampling_starts_as_interpolation(factor):
    maps = torch.randn(1, 1, 6, 5, dtype=torch.float64)
    found = F.conv_transpose2d(maps, bilinear_kernel(factor).double()[None, None], stride=factor, padding=factor // 2)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear")
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-12)


def test_dice_of_masks():
    masks = torch.zeros(2, 4, 5, 5)
    masks[:, 0, :3], masks[:, 1, 3:], masks[:, 2, :, :2] = 1, 1, 1
    torch.testing.assert_close(dice(masks, masks), torch.ones(4))  # the last class is in neither: 1
    assert dice(masks, masks[:, [1, 0, 2, 3]])[:2].tolist() == [0, 0]
    # 3 rows of 5 and 2 columns of 5 share 6 pixels, and have 15 and 10
    assert dice(masks[:, :1], masks[:, 2:3]).item() == pytest.approx(2 * 6 / 25)


def test_dice_gradient_is_the_formula():
    """V-Net, section 3: dD/dp = 2 (g S - 2 p I) / S^2 with I = sum p g, S = sum p^2 + sum g^2."""
    p = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.rand(2, 3, 4, 4, dtype=torch.float64).round()
    (found,) = torch.autograd.grad(dice(p, g).sum(), p)
    shared, total = (sums[None, :, None, None] for sums in ((p * g).sum((0, 2, 3)), (p**2 + g**2).sum((0, 2, 3))))
    torch.testing.assert_close(found, 2 * (g * total - 2 * p * shared) / total**2, rtol=1e-12, atol=1e-14)
    torch.autograd.gradcheck(lambda p: dice(p, g), p)


@pytest.mark.parametrize(
    ("make", "side"),
    [(lambda: FCN(**TINY_FCN), 64), (lambda: SegmentationUNet(channels=2, widths=(8, 8, 16), padded=True), 32)],
)
def test_same_as_plain_torch(make, side):
    network = seeded(make)
    plain = stock(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 2, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network(image), plain(image), rtol=1e-5, atol=1e-5)


def test_fixed_enlargement():
    network = FCN(**TINY_FCN)
    assert not network.enlargement.weight.requires_grad
    assert all(doubling.weight.requires_grad for doubling in network.doublings)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: FCN(stride=4), "FCN: stride must be 8, 16 or 32: got 4"),
        (lambda: FCN(widths=(4, 4)), "FCN: widths and convolutions must have five entries: got 2 and 5"),
        (lambda: FCN(**{**TINY_FCN, "head_size": 4}), "FCN: head_size must be odd: got 4"),
        (lambda: FCN(**TINY_FCN)(torch.zeros(1, 2, 32, 48)), "sides that are multiples of 32: got 32x48"),
        (lambda: SegmentationUNet(widths=(4,)), "SegmentationUNet: widths must have at least two entries: got 1"),
        (
            lambda: SegmentationUNet(widths=(4, 4, 4))(torch.zeros(1, 1, 44, 46)),
            "multiples of 4 less 4, at least 44: got 44x46",
        ),
        (lambda: SegmentationUNet(widths=(4, 4, 4))(torch.zeros(1, 1, 40, 44)), "at least 44: got 40x44"),
        (
            lambda: SegmentationUNet(widths=(4, 4), padded=True)(torch.zeros(1, 1, 3, 4)),
            "multiples of 2, at least 2: got 3x4",
        ),
    ],
)
def test_rejects(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_what_is_far_does_not_matter():
    """Padding is with zeros: a circular one would let the right edge speak at the left one."""
    network = seeded(lambda: SegmentationUNet(3, widths=(4, 4), padded=True)).double().eval()
    image = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    changed = image.clone()
    changed[..., 32:] += 1
    edge = 32 - network.reach
    assert edge > 8
    with torch.no_grad():
        same = (network(image) == network(changed)).all(1)[0].all(0)  # [64]: of every column
    assert same[:edge].all() and not same[32:].any()
