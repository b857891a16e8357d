"""LeNet-5: sizes of the paper, errors, ours beside plain torch."""

from __future__ import annotations

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.vision.lenet import LeNet5


@pytest.mark.parametrize("preset", LeNet5.PRESETS)
def test_shapes_and_parameters(preset):
    network = LeNet5.from_preset(preset)
    sizes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda module, args, y, name=name: sizes.setdefault(name, []).append(tuple(y.shape)))
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert sizes == {
        "c1": [(2, 6, 28, 28)], "pool": [(2, 6, 14, 14), (2, 16, 5, 5)], "c3": [(2, 16, 10, 10)], "c5": [(2, 120, 1, 1)],
        "f6": [(2, 84)], "output": [(2, 10)],
    }  # fmt: skip
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in network.named_children()}
    # C1, C5 and F6 as in the paper's section II.B; C3 with all of its connections; a linear output
    assert count == {"c1": 156, "c3": 2416, "c5": 48120, "pool": 0, "f6": 10164, "output": 850}


def test_sizes_are_arguments():
    assert LeNet5(classes=43, channels=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 43)


@pytest.mark.parametrize("preset", LeNet5.PRESETS)
def test_ours_is_plain_torch(preset):
    torch.manual_seed(0)
    network, images = LeNet5.from_preset(preset), torch.randn(4, 1, 32, 32)
    plain = stock(network)
    assert plain.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(network(images), plain(images), rtol=1e-5, atol=1e-5)
    exact = network.double()(images.double())
    torch.testing.assert_close(plain(images).double(), exact, rtol=1e-5, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="LeNet5: image must be 32x32: got 28x28"):
        LeNet5()(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="LeNet5: activation must be 'tanh' or 'relu': got 'gelu'"):
        LeNet5(activation="gelu")
