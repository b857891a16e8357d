"""DnCNN: its size, that it predicts the noise, that it treats every place alike."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops.bench.stock import stock
from dlops.models.autoencoders.denoising import DnCNN


def made(**sizes: object) -> DnCNN:
    torch.manual_seed(0)
    return DnCNN(**{**dict(depth=4, width=5, channels=2, norm=False), **sizes}).double()


def test_the_paper_has_as_many_parameters() -> None:
    """17 layers of 64: the first and last with bias, 15 without and with a batch norm's scale and shift."""
    by_hand = (9 * 64 + 64) + 15 * (9 * 64 * 64 + 2 * 64) + (9 * 64 + 1)
    assert sum(p.numel() for p in DnCNN.from_preset("grey").parameters()) == by_hand


@pytest.mark.parametrize("norm", [False, True])
def test_the_layers_predict_the_noise(norm: bool) -> None:
    network, x = made(norm=norm), torch.rand(2, 2, 9, 7).double()
    assert network(x).shape == x.shape
    torch.testing.assert_close(network(x) + network.noise(x), x)
    with torch.no_grad():
        network.noise[-1].weight.zero_()
        network.noise[-1].bias.zero_()
    assert torch.equal(network(x), x)


def test_an_output_pixel_sees_two_depth_plus_one_pixels() -> None:
    x = torch.rand(1, 2, 21, 21).double().requires_grad_()
    made()(x)[0, 0, 10, 10].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.tolist() == list(range(10 - 4, 10 + 4 + 1))


def test_moved_input_moves_the_output() -> None:
    network, x = made(), torch.rand(1, 2, 24, 24).double()
    here, there = network(x[..., :20, :20]), network(x[..., 3:23, 1:21])
    torch.testing.assert_close(here[..., 7:16, 5:16], there[..., 4:13, 4:15], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_plain_torch_gives_the_same(norm: bool) -> None:
    network, x = made(norm=norm).float(), torch.rand(2, 2, 12, 12)
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    with dlops.backend("dlops"), torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"DnCNN: noisy must be \[N, 2, H, W\]: got \[1, 3, 8, 8\]"):
        made()(torch.zeros(1, 3, 8, 8).double())
    with pytest.raises(ValueError, match="DnCNN: expected depth >= 2, width >= 1 and channels >= 1: got depth 1"):
        DnCNN(depth=1)
