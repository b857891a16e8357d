"""The masked autoencoder: patches there and back, what the encoder may not see, which pixels the loss counts."""

from __future__ import annotations

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.autoencoders.masked import MaskedAutoencoder, positions


def made(**overrides: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder.from_preset("digits", **overrides).double()


def image(n: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def test_patches_there_and_back() -> None:
    network, x = made(channels=3), image(channels=3)
    patches = network.to_patches(x)
    assert patches.shape == (3, 16, 12)
    torch.testing.assert_close(patches[1, 6], x[1, :, 2:4, 4:6].flatten())  # second row of patches, third column
    assert torch.equal(network.to_image(patches), x)


def test_shapes_and_the_masked_share() -> None:
    network, x = made(), image()
    reconstruction, mask = network(x)
    assert reconstruction.shape == x.shape and mask.shape == (3, 16)
    assert mask.sum(1).tolist() == [12, 12, 12]
    assert network.encode(x).shape == (3, 16, 48)
    assert network.encode(x, network.draw_visible(3, x.device)).shape == (3, 4, 48)
    network.objective(x).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_visible_patches_are_random_and_differ() -> None:
    visible = made().draw_visible(2000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert all(len(row.unique()) == 4 for row in visible[:50])
    shares = torch.bincount(visible.flatten(), minlength=16) / 2000
    torch.testing.assert_close(shares, torch.full((16,), 0.25), rtol=0, atol=0.04)


def test_masked_pixels_change_nothing_and_visible_ones_do() -> None:
    network, x = made().eval(), image().requires_grad_()
    visible = network.draw_visible(3, x.device)
    reconstruction, mask = network(x, visible)
    reconstruction.square().sum().backward()
    seen = network.to_patches(x.grad).abs().sum(2) > 0
    assert torch.equal(seen, ~mask)


def test_the_loss_counts_masked_pixels_only() -> None:
    network, x = made(), image()
    reconstruction, mask = network(x)
    target = x.clone().requires_grad_()
    loss = network.loss(target, reconstruction.detach(), mask)
    loss.backward()
    assert torch.equal(network.to_patches(target.grad).abs().sum(2) > 0, mask)
    errors = (network.to_patches(reconstruction) - network.to_patches(x)).square()[mask]
    torch.testing.assert_close(loss, errors.mean())


def test_the_decoder_finds_the_places_again() -> None:
    """The order in which the visible patches are named does not matter; which they are does."""
    network, x = made().eval(), image()
    visible = network.draw_visible(3, x.device)
    first = network(x, visible)[0]
    torch.testing.assert_close(network(x, visible.flip(1))[0], first, rtol=0, atol=1e-12)
    assert (network(x, (visible + 1) % 16)[0] - first).abs().max() > 1e-3


def test_guesses_depend_on_the_place() -> None:
    network, x = made(), image(1)
    reconstruction, mask = network(x)
    guesses = network.to_patches(reconstruction)[mask]  # [12, 4]
    assert torch.pdist(guesses).min() > 1e-3


def test_positions_tell_all_places_apart() -> None:
    places = positions(4, 48)
    assert places.shape == (16, 48)
    assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.5
    torch.testing.assert_close(places[1, :24], places[2, :24])  # the same row
    torch.testing.assert_close(places[1, 24:], places[5, 24:])  # the same column


def test_the_paper_has_as_many_parameters() -> None:
    """Encoder of ViT-Large without its class token and head, decoder of 8 blocks of 512 (section 4)."""

    def block(width: int) -> int:
        return 12 * width**2 + 13 * width

    with torch.device("meta"):
        network = MaskedAutoencoder.from_preset("original")
    encoder = (768 * 1024 + 1024) + 24 * block(1024) + 2 * 1024
    decoder = (1024 * 512 + 512) + 512 + 8 * block(512) + 2 * 512 + (512 * 768 + 768)
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="MaskedAutoencoder: side must be a multiple of patch: got side 8, patch 3"):
        made(patch=3)
    with pytest.raises(ValueError, match="MaskedAutoencoder: masked leaves 16 of 16 patches: got 0.0"):
        made(masked=0.0)
    with pytest.raises(ValueError, match="MaskedAutoencoder: widths must be multiples of 4: got 50 and 32"):
        made(width=50)
    with pytest.raises(ValueError, match=r"MaskedAutoencoder: image must be \[N, 1, 8, 8\]: got \[1, 1, 8, 9\]"):
        made()(torch.zeros(1, 1, 8, 9).double())


def test_ours_is_plain_torch() -> None:
    torch.manual_seed(0)
    network, x = MaskedAutoencoder.from_preset("digits"), image().float()
    plain = stock(network)
    assert plain.state_dict().keys() == network.state_dict().keys()
    visible = network.draw_visible(3, x.device)
    for mode in (True, False):
        theirs, ours = (net.train(mode).encode(x, visible) for net in (plain, network))
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
