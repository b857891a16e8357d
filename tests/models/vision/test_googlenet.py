"""GoogLeNet: parameters, the sizes of table 1, torchvision's form, the auxiliary classifiers."""

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.googlenet import TABLE_1, GoogLeNet, Inception, googlenet_loss
from tests.models.vision.torchvision_models import torchvision_models


def test_parameters_as_published():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in GoogLeNet(auxiliary=names).parameters()) for names in ((), ("4a", "4d"))]
    assert counts == [6_998_552, 13_378_280]  # Caffe's bvlc_googlenet without and with its auxiliary classifiers


def test_modules_of_table_1():
    """The column "depth" of every line, and the maps that each module puts out."""
    widths = {name: w[0] + w[2] + w[4] + w[5] for name, w in TABLE_1.items()}
    assert list(widths.values()) == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    network = GoogLeNet(auxiliary=()).eval()
    with torch.no_grad():
        assert network._stem(torch.rand(1, 3, 224, 224)).shape == (1, 192, 28, 28)


def test_batch_norm_is_torchvisions():
    theirs_of = torchvision_models().googlenet
    torch.manual_seed(0)
    ours = GoogLeNet.from_preset("batch_norm", dropout=0, auxiliary_dropout=0)
    torch.manual_seed(0)
    theirs = theirs_of(init_weights=True, dropout=0, dropout_aux=0)
    weights = theirs.state_dict()
    assert set(ours.state_dict()) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    image = torch.randn(2, 3, 64, 64)
    logits, first, second = ours(image)
    expected = theirs(image)
    for got, wanted in zip((logits, first, second), (expected.logits, expected.aux_logits1, expected.aux_logits2)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_ours_and_torch_nn_agree(batch_norm):
    torch.manual_seed(0)
    network = GoogLeNet.from_preset("small", channels=1, classes=10, batch_norm=batch_norm).eval()
    plain = stock(network)
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(image), plain(image), rtol=0, atol=1e-5)
    assert list(network.state_dict()) == list(plain.state_dict())


def test_a_module_stacks_its_branches():
    torch.manual_seed(0)
    module = Inception(6, (4, 3, 5, 2, 7, 8))
    maps = torch.rand(2, 6, 5, 5)
    assert module.width == 24
    expected = torch.cat([module.branch1(maps), module.branch2(maps), module.branch3(maps), module.branch4(maps)], 1)
    assert torch.equal(module(maps), expected)
    assert [branch[1].conv.kernel_size for branch in (module.branch2, module.branch3, module.branch4)] == [(3, 3), (5, 5), (1, 1)]


def test_auxiliary_classifiers_only_while_training():
    network = GoogLeNet.from_preset("small", channels=1, classes=10)
    image = torch.rand(2, 1, 8, 8)
    logits = network(image)
    assert [tuple(each.shape) for each in logits] == [(2, 10)] * 3
    assert network.eval()(image).shape == (2, 10)
    without = GoogLeNet.from_preset("small", channels=1, classes=10, auxiliary=())
    assert without(image).shape == (2, 10)


def test_auxiliary_losses_weigh_a_third():
    labels = torch.tensor([0, 1])
    good, bad = torch.eye(2) * 100, torch.zeros(2, 2)
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(googlenet_loss((good, bad, bad), labels), 0.6 * log2)
    torch.testing.assert_close(googlenet_loss((bad, good, bad), labels), 1.3 * log2)
    torch.testing.assert_close(googlenet_loss(bad, labels), log2)


def test_auxiliary_classifiers_reach_the_first_layers():
    """Section 5: they bring gradient to the lower layers; what lies above them gets none from them."""
    torch.manual_seed(0)
    network = GoogLeNet.from_preset("small", channels=1, classes=10, auxiliary_dropout=0.0)
    _, first, _ = network(torch.rand(2, 1, 8, 8))
    first.sum().backward()
    assert network.conv1.conv.weight.grad.abs().max() > 0
    assert network.inception4a.branch1.conv.weight.grad is None


@pytest.mark.parametrize("preset, smallest", [("original", 31), ("batch_norm", 15), ("small", 4)])
def test_smallest_image(preset, smallest):
    network = GoogLeNet.from_preset(preset, auxiliary=()).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, smallest, smallest)).shape == (1, 1000)
    line = rf"GoogLeNet: image must be \[N, 3, H, W\] with H and W at least {smallest}"
    with pytest.raises(ValueError, match=line):
        network(torch.rand(1, 3, smallest - 1, smallest))


def test_bad_arguments():
    with pytest.raises(ValueError, match="GoogLeNet: auxiliary names '4b', expected some of 3a, 4a, 5a"):
        GoogLeNet.from_preset("small", auxiliary=("4b",))
