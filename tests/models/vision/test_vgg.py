"""VGG: parameters of table 1, torchvision's names, weights and outputs."""

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.vgg import VGG
from tests.models.vision.torchvision_models import torchvision_models


@pytest.mark.parametrize("preset, millions", [("vgg11", 133), ("vgg13", 133), ("vgg16", 138), ("vgg19", 144)])
def test_parameters_of_table_2(preset, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in VGG.from_preset(preset).parameters())
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("preset", [name for name in VGG.PRESETS if name != "small"])
def test_names_and_shapes_are_torchvisions(preset):
    with torch.device("meta"):
        ours, theirs = VGG.from_preset(preset), getattr(torchvision_models(), preset)()
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in theirs.state_dict().items()}


@pytest.mark.parametrize("preset", ["vgg11", "vgg13_bn"])
def test_is_torchvisions(preset):
    """The same weights give the same maps and logits, and where the linear layers are left out, so does the same seed."""
    theirs_of = torchvision_models().vgg
    torch.manual_seed(0)
    config, batch_norm = ("A", False) if preset == "vgg11" else ("B", True)
    theirs = theirs_of.VGG(theirs_of.make_layers(theirs_of.cfgs[config], batch_norm), init_weights=False)
    theirs.classifier = None
    torch.manual_seed(0)
    ours = VGG.from_preset(preset, hidden=8, classes=10).eval()
    ours.features.load_state_dict(theirs.features.state_dict())
    image = torch.rand(1, 3, 64, 64)
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.features(image), theirs.features(image), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_same_seed_as_torchvision():
    theirs_of = torchvision_models().vgg11
    torch.manual_seed(0)
    ours = VGG.from_preset("vgg11").eval()
    torch.manual_seed(0)
    theirs = theirs_of().eval()
    weights = theirs.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_ours_and_torch_nn_agree(batch_norm):
    torch.manual_seed(0)
    network = VGG.from_preset("small", channels=1, classes=10, batch_norm=batch_norm).eval()
    plain = stock(network)
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(image), plain(image), rtol=0, atol=1e-5)
    assert list(network.state_dict()) == list(plain.state_dict())


def test_maps_of_table_1():
    network = VGG.from_preset("vgg11", hidden=8, classes=10).eval()
    assert network.features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 1, 1)
    assert network(torch.rand(2, 3, 32, 40)).shape == (2, 10)


def test_initial_weights_keep_the_signal():
    """He et al. 2015: the maps of the last block are as large as those of the first."""
    torch.manual_seed(0)
    network = VGG.from_preset("vgg19", hidden=8).eval()
    maps, sizes = torch.randn(1, 3, 64, 64), []
    with torch.no_grad():
        for layer in network.features:
            maps = layer(maps)
            sizes.append(maps.square().mean().sqrt().item())
    assert 0.2 < sizes[-1] / sizes[0] < 20


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"VGG: depths and widths must be equally many: got \(1, 1\) and \(8,\)"):
        VGG(depths=(1, 1), widths=(8,))
    with pytest.raises(ValueError, match=r"VGG: image must be \[N, 3, H, W\] with H and W at least 8: got \[1, 3, 7, 8\]"):
        VGG.from_preset("small")(torch.rand(1, 3, 7, 8))
