"""The U-Net: shapes, conditioning, gradients, and the same answer on our kernels as on torch's."""

from __future__ import annotations

import math

import pytest
import torch

import dlops
from dlops.models import UNet, timestep_embedding

SMALL = {"channels": 8, "groups": 4}


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    """Networks this small gain nothing from a second thread, and lose much where the cores are busy."""
    torch.set_num_threads(1)


def network(seed: int = 0, **settings) -> UNet:
    """A small network without silent branches: every parameter drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet(**SMALL, **settings)
    with torch.no_grad():
        for parameter in unet.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    return unet.eval()


def inputs(n: int = 3, height: int = 8, width: int = 8, channels: int = 1):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(n, channels, height, width, generator=generator)
    return sample, torch.randint(0, 1000, (n,), generator=generator), torch.arange(n) % 10


def test_timestep_embedding_is_the_formula():
    times, channels = torch.tensor([0.0, 1.0, 37.5, 999.0]), 12
    angles = [[t * 10000.0 ** (-k / 6) for k in range(6)] for t in times.tolist()]
    expected = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles])
    found = timestep_embedding(times, channels)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # 999 * 2^-24 in the angle


@pytest.mark.parametrize("channels", [0, 7, -2])
def test_timestep_embedding_rejects(channels):
    with pytest.raises(ValueError, match="channels must be even and positive"):
        timestep_embedding(torch.zeros(1), channels)


@pytest.mark.parametrize(
    ("settings", "height", "width"),
    [
        ({}, 8, 8),
        ({"multipliers": (1,)}, 5, 7),
        ({"multipliers": (1, 2, 3), "blocks": 2}, 12, 8),
        ({"in_channels": 3}, 6, 4),
    ],
)
def test_shape(settings, height, width):
    sample, times, labels = inputs(2, height, width, settings.get("in_channels", 1))
    assert network(**settings)(sample, times, labels).shape == sample.shape


def test_starts_at_zero():
    """A fresh network predicts 0 everywhere: its last convolution starts at zero."""
    assert not UNet(**SMALL)(*inputs()).any()


def test_no_labels_is_the_null_class():
    unet, (sample, times, labels) = network(), inputs()
    null = torch.full_like(labels, unet.null_class)
    assert torch.equal(unet(sample, times), unet(sample, times, null))
    assert not torch.allclose(unet(sample, times), unet(sample, times, labels))


def test_one_timestep_for_all():
    unet, (sample, _, labels) = network(), inputs()
    per_sample = unet(sample, torch.full((3,), 500), labels)
    for timestep in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(unet(sample, timestep, labels), per_sample)
    assert not torch.allclose(unet(sample, 100, labels), per_sample)


def test_samples_do_not_mix():
    unet, (sample, times, labels) = network(), inputs()
    together = unet(sample, times, labels)
    for i in range(3):
        alone = unet(sample[i : i + 1], times[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    unet = network().train()
    unet(*inputs()).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_error_against_float64():
    unet, (sample, times, labels) = network(), inputs()
    with torch.no_grad():
        ours = unet(sample, times, labels)
        with dlops.backend("torch"):
            torchs = unet(sample, times, labels)
            exact = unet.double()(sample.double(), times, labels)
    scale = exact.abs().max()
    assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max() + 1e-6 * scale


def test_rejects_a_size_it_cannot_halve():
    with pytest.raises(ValueError, match="sides that are multiples of 2: got 7x8"):
        UNet(**SMALL)(*inputs(1, 7, 8))


def test_rejects_channels_that_groups_do_not_divide():
    with pytest.raises(ValueError, match=r"channels must be a multiple of groups \(4\): got 10"):
        UNet(channels=10, groups=4)
