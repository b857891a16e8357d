"""AlexNet in its two published forms: parameters, outputs beside torchvision's, the two halves, the normalisation."""

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.alexnet import AlexNet, local_response_norm
from tests.models.vision.torchvision_models import torchvision_models


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("preset, count", [("original", 60_965_224), ("one_tower", 61_100_840)])
def test_parameters_as_published(preset, count):
    with torch.device("meta"):
        assert parameters(AlexNet.from_preset(preset)) == count  # Caffe's bvlc_alexnet; torchvision's alexnet


def test_maps_as_published():
    network = AlexNet(hidden=8).eval()
    maps, sizes = torch.rand(1, 3, 224, 224), []
    with torch.no_grad():
        for layer in network.features:
            maps = layer(maps)
            sizes.append(tuple(maps.shape[1:]))
    assert sizes[:4] == [(96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13)]
    assert sizes[4:] == [(384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)]


def test_one_tower_is_torchvisions():
    """The same seed gives the same weights under the same names, and these the same logits."""
    theirs_of = torchvision_models().alexnet
    torch.manual_seed(0)
    ours = AlexNet.from_preset("one_tower").eval()
    torch.manual_seed(0)
    theirs = theirs_of().eval()
    weights = theirs.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    image = torch.randn(1, 3, 224, 224) * 10
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


def test_ours_and_torch_nn_agree():
    torch.manual_seed(0)
    network = AlexNet.from_preset("small", classes=5).eval()
    plain = stock(network)
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(image), plain(image), rtol=0, atol=1e-5)
    assert list(network.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("number", ["3", "8", "10"])
def test_halves_do_not_see_each_other(number):
    conv = AlexNet.from_preset("small").double().features.get_submodule(number)
    maps = torch.rand(1, conv.in_channels, 5, 5, dtype=torch.float64, requires_grad=True)
    half_in, half_out = conv.in_channels // 2, conv.out_channels // 2
    (gradient,) = torch.autograd.grad(conv(maps)[:, :half_out].sum(), maps)
    assert gradient[:, :half_in].abs().max() > 0
    assert gradient[:, half_in:].abs().max() == 0


def test_conv3_sees_both_halves():
    network = AlexNet.from_preset("small")
    assert [network.features.get_submodule(n).groups for n in ("0", "3", "6", "8", "10")] == [1, 2, 1, 2, 2]


def test_normalisation_is_the_papers():
    torch.manual_seed(0)
    maps = torch.randn(2, 9, 3, 3, dtype=torch.float64) * 100
    expected = torch.stack(
        [maps[:, i] / (2 + 1e-4 * maps[:, max(0, i - 2) : i + 3].square().sum(1)) ** 0.75 for i in range(9)], 1
    )
    torch.testing.assert_close(local_response_norm()(maps), expected, rtol=1e-12, atol=1e-12)


def test_only_training_drops():
    torch.manual_seed(0)
    network = AlexNet.from_preset("small")
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


@pytest.mark.parametrize("preset, smallest", [("original", 63), ("one_tower", 63), ("small", 15)])
def test_smallest_image(preset, smallest):
    network = AlexNet.from_preset(preset, hidden=8).eval()
    assert network(torch.rand(1, 3, smallest, smallest)).shape == (1, 1000)
    line = rf"AlexNet: image must be \[N, 3, H, W\] with H and W at least {smallest}: got \[1, 3, {smallest}, {smallest - 1}\]"
    with pytest.raises(ValueError, match=line):
        network(torch.rand(1, 3, smallest, smallest - 1))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"AlexNet: widths must be five numbers: got \(8, 8\)"):
        AlexNet(widths=(8, 8))
    with pytest.raises(ValueError, match="AlexNet: no preset 'large', expected one of 'original', 'one_tower', 'small'"):
        AlexNet.from_preset("large")
    with pytest.raises(ValueError, match=r"got \[3, 32, 32\]"):
        AlexNet.from_preset("small")(torch.rand(3, 32, 32))
