"""ResNet: torchvision's parameters and outputs, the paper's counts, and what a shortcut must do."""

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.resnet import BasicBlock, Bottleneck, ResNet
from tests.models.vision.torchvision_models import torchvision_models

# torchvision's published counts; for CIFAR-10 the paper's table 6 gives 0.27 M (20 layers) and 0.85 M (56)
PARAMETERS = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160, "resnet152": 60_192_808,
    "resnet8": 75_290, "resnet20": 269_722, "resnet56": 853_018, "plain20": 269_722, "plain56": 853_018,
}  # fmt: skip

LARGE = ("resnet34", "resnet50", "resnet101", "resnet152")  # built in the full run only


def images(size: int, count: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def used(network: ResNet) -> ResNet:
    """In eval mode, with running statistics and scales that are not those of the start."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if "running_mean" in name or (tensor.dim() == 1 and name.endswith("bias")):
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.3, 0.6, generator=generator)
    return network.eval()


@pytest.mark.parametrize("preset", [name for name in PARAMETERS if name not in LARGE])
def test_parameter_counts(preset: str) -> None:
    network = ResNet.from_preset(preset)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[preset]
    if preset != "resnet18":  # 6 n + 2 layers
        layers = sum(key.endswith("weight") and ("conv" in key or "fc" in key) for key in network.state_dict())
        assert layers == int(preset.removeprefix("resnet").removeprefix("plain"))


def test_every_preset_is_counted() -> None:
    assert set(PARAMETERS) == set(ResNet.PRESETS)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_equals_torchvision(block: str) -> None:
    models = torchvision_models()
    theirs = {"basic": models.resnet.BasicBlock, "bottleneck": models.resnet.Bottleneck}[block]
    torch.manual_seed(0)
    expected = models.ResNet(theirs, [2, 1, 1, 1], num_classes=10)
    torch.manual_seed(0)
    network = ResNet(block, (2, 1, 1, 1), classes=10)
    weights = network.state_dict()
    for key, tensor in expected.state_dict().items():  # the same seed gives the same start
        assert torch.equal(weights.pop(key), tensor), key
    assert not weights
    expected.load_state_dict(used(network).state_dict())
    with torch.no_grad():
        logits = network(images(64))
        assert logits.abs().max() > 0.1
        assert (logits - expected.eval()(images(64))).abs().max() <= 1e-4


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvision_presets(name: str) -> None:
    with torch.device("meta"):
        expected = getattr(torchvision_models(), name)().state_dict()
        network = ResNet.from_preset(name)
    found = network.state_dict()
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }


def test_shapes() -> None:
    assert ResNet.from_preset("resnet18", classes=7)(images(65)).shape == (2, 7)
    for side in (8, 15, 32):
        network = ResNet.from_preset("resnet8", classes=5, channels=1)
        assert network(images(side)[:, :1]).shape == (2, 5)
    assert Bottleneck(16, 8, stride=2)(torch.zeros(1, 16, 7, 9)).shape == (1, 32, 4, 5)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_branch_is_the_shortcut(block: type, shortcut: str) -> None:
    maps = images(8, dtype=torch.float64)[:, :1].expand(2, 16, 8, 8).relu()
    last = "bn2" if block is BasicBlock else "bn3"
    same = block(16, 16 // block.EXPANSION, shortcut=shortcut).double()
    torch.nn.init.zeros_(getattr(same, last).weight)
    assert torch.equal(same(maps), maps)
    smaller = block(16, 32 // block.EXPANSION, stride=2, shortcut=shortcut).double()
    torch.nn.init.zeros_(getattr(smaller, last).weight)
    result = smaller(maps)
    assert torch.equal(result, smaller.downsample(maps).relu())
    if shortcut == "A":
        assert torch.equal(result[:, :16], maps[:, :, ::2, ::2]) and not result[:, 16:].any()


def test_gradient_through_the_shortcut() -> None:
    """d block(x) / d x = 1 where the branch is zero; a plain block passes nothing."""
    maps = (images(8, dtype=torch.float64)[:, :1].expand(2, 4, 8, 8).abs() + 0.1).requires_grad_()
    for shortcut, expected in (("B", 1.0), ("none", 0.0)):
        block = BasicBlock(4, 4, shortcut=shortcut).double()
        torch.nn.init.zeros_(block.bn2.weight)
        (gradient,) = torch.autograd.grad(block(maps).sum(), maps)
        assert torch.equal(gradient, torch.full_like(gradient, expected)), shortcut


@pytest.mark.parametrize("preset", ["resnet8", "resnet18", "resnet50"])
def test_without_norm_starts_with_zero_branches(preset: str) -> None:
    network = ResNet.from_preset(preset, norm=False, widths=(8, 8, 8, 8)[: 3 if preset == "resnet8" else 4])
    block = network.layer1[-1]
    maps = torch.rand(1, 8 * block.EXPANSION, 8, 8)
    assert torch.equal(block(maps), maps)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
def test_folded(block: str, shortcut: str) -> None:
    network = ResNet(block, (2, 2), (4, 8), classes=5, stem="small", shortcut=shortcut)
    network = used(network).double()
    x = images(9, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = network.folded()
    assert not any("bn" in name for name, _ in folded.named_parameters())
    torch.testing.assert_close(folded(x), network(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("norm", [True, False])
def test_equals_plain_torch(norm: bool) -> None:
    network = ResNet.from_preset("resnet8", norm=norm)
    if not norm:
        torch.nn.init.normal_(network.layer2[0].conv2.weight, std=0.1)
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(network(images(16)), plain(images(16)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "wide"}, "ResNet: block must be one of 'basic', 'bottleneck': got 'wide'"),
        ({"stem": "cifar"}, "ResNet: stem must be one of 'imagenet', 'small': got 'cifar'"),
        ({"shortcut": "C"}, "ResNet: shortcut must be one of 'A', 'B', 'none': got 'C'"),
        ({"depths": (1, 2)}, r"ResNet: depths and widths must be positive and equally many: got \(1, 2\) and \(64, .*"),
        ({"depths": (1, 0), "widths": (2, 2)}, "ResNet: depths and widths must be positive"),
        ({"depths": (1, 1), "widths": (4, 2), "shortcut": "A"}, r"widths must not decrease with shortcut 'A'.*got \(4, 2\)"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_bad_images() -> None:
    network = ResNet.from_preset("resnet8")
    for shape in ((2, 1, 8, 8), (3, 8, 8), (2, 3, 0, 8)):
        with pytest.raises(
            ValueError, match=r"ResNet: image must be \[N, 3, H, W\]: got \[" + ", ".join(map(str, shape))
        ):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="ResNet: no preset 'resnet19', expected one of 'resnet18'"):
        ResNet.from_preset("resnet19")
    with pytest.raises(ValueError, match="ResNet: folded needs norm=True"):
        ResNet.from_preset("resnet8", norm=False).folded()
