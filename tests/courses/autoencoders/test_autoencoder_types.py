"""The maths of rows E5 to E8: baselines, alarms, the best possible denoiser, what each type of autoencoder must obey."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from dlops.courses.autoencoders._types import contraction_gap, leak_gap, nearest_gap, straight_through_gap
from dlops.courses.autoencoders.e5_denoising import (
    SIDE,
    TRAINED_COLUMNS,
    best_denoiser,
    crops,
    moved_gap,
    psnr,
    score_gap,
)
from dlops.courses.autoencoders.e6_anomalies import area_under_roc, roc, threshold_for
from dlops.courses.autoencoders.e7_vae import bernoulli_baseline, gaussian_baseline, kl_gap, quadrature
from dlops.courses.session import Session
from dlops.models.autoencoders.denoising import DnCNN
from dlops.models.autoencoders.masked import MaskedAutoencoder
from dlops.models.autoencoders.regularised import RegularisedAutoencoder
from dlops.models.autoencoders.vae import VAE
from dlops.models.autoencoders.vqvae import VQVAE, Codebook


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(n: int = 6) -> torch.Tensor:
    return (torch.rand(n, 1, 8, 8) > 0.5).float()


# E5


def test_the_best_denoiser_is_the_mean_of_the_posterior() -> None:
    """Two clean points on a line: the posterior is a logistic function of the place."""
    clean, seen = torch.tensor([[-1.0], [1.0]]).double(), torch.linspace(-2, 2, 9)[:, None].double()
    torch.testing.assert_close(best_denoiser(seen, clean, 0.7), torch.tanh(seen / 0.7**2))
    assert score_gap(seen, clean, 0.7) < 1e-12


def test_no_other_denoiser_is_better() -> None:
    clean = torch.rand(30, 5).double()
    seen = (clean + 0.3 * torch.randn(400, 30, 5)).flatten(0, 1).double()
    target = clean.expand(400, -1, -1).flatten(0, 1)
    least = (best_denoiser(seen, clean, 0.3) - target).square().mean()
    for sigma in (0.2, 0.45):
        assert (best_denoiser(seen, clean, sigma) - target).square().mean() > least


def test_crops_are_squares_of_the_photograph() -> None:
    photograph = torch.arange(2 * 60 * 70).view(1, 2, 60, 70).float()
    for crop in crops(photograph, 20, torch.Generator().manual_seed(0)):
        step = (crop[0, 0, 1] - crop[0, 0, 0]).item()
        assert crop.shape == (2, SIDE, SIDE) and abs(step) == 1
        assert ((crop[:, 1:] - crop[:, :-1]) == 70).all() and ((crop[..., 1:] - crop[..., :-1]) == step).all()
    assert TRAINED_COLUMNS < 640


def test_psnr_of_a_known_error() -> None:
    assert psnr(torch.zeros(3, 4), torch.full((3, 4), 0.1)) == pytest.approx(20)


def test_a_network_that_knows_the_place_is_found_out() -> None:
    network, noisy = DnCNN(depth=3, width=4, norm=False), torch.rand(2, 1, 60, 60)
    assert moved_gap(Session("E5"), network, noisy) <= 1e-12
    network.register_forward_hook(lambda module, given, out: out + 0.01 * torch.arange(out.shape[-1]))
    assert moved_gap(Session("E5"), network, noisy) > 1e-3


# E6


def test_the_area_under_the_roc_equals_that_of_sklearn() -> None:
    from sklearn.metrics import roc_auc_score

    known, strange = torch.randint(0, 12, (60,)).double(), torch.randint(4, 16, (40,)).double()  # with ties
    expected = roc_auc_score([0] * 60 + [1] * 40, torch.cat([known, strange]).numpy())
    assert area_under_roc(known, strange) == pytest.approx(expected, abs=1e-12)
    false, true = roc(known, strange)
    assert torch.trapezoid(true, false).item() == pytest.approx(expected, abs=1e-12)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_the_threshold_keeps_its_share_of_false_alarms() -> None:
    scores = torch.rand(97).double()
    for share in (0.01, 0.05, 0.3):
        alarms = (scores > threshold_for(scores, share)).double().mean().item()
        assert share - 1 / 97 < alarms <= share


# E7


def test_baselines_by_hand() -> None:
    """Four pixels, three of four images with ink: probability (3 + 1) / (4 + 2)."""
    training = torch.tensor([1.0, 1, 1, 0])[:, None, None, None].expand(-1, 1, 2, 2)
    blank = torch.zeros(1, 1, 2, 2)
    assert bernoulli_baseline(training, blank) == pytest.approx(-4 * math.log(1 / 3))
    noise = (torch.arange(100_000).double() + 0.5) / 100_000
    density = Normal(0.75 + 0.5, math.sqrt(0.75 * 0.25 + 1 / 12)).log_prob(noise).mean().item()
    assert gaussian_baseline(training, blank) == pytest.approx(-4 * density, rel=1e-6)


def test_the_gaussian_baseline_is_no_better_than_the_true_pixels() -> None:
    """Its density of noisy pixels bounds a likelihood from below, so it cannot beat the entropy of the pixels."""
    pixels = (torch.rand(4000, 1, 2, 2) < 0.3).float()
    entropy = 4 * -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert gaussian_baseline(pixels, pixels) > entropy
    assert bernoulli_baseline(pixels, pixels) == pytest.approx(entropy, rel=0.03)


def test_the_quadrature_integrates_to_one() -> None:
    """Over all images of 2x2 binary pixels."""
    network = VAE(code=1, hidden=(4,), side=2).double()
    every = torch.tensor([[k >> bit & 1 for bit in range(4)] for k in range(16)]).double().view(16, 1, 2, 2)
    with torch.no_grad():
        assert quadrature(network, every).exp().sum().item() == pytest.approx(1, abs=1e-9)
        assert kl_gap(network, every, 20_000, torch.Generator().manual_seed(0)) < 0.05


# E8


def test_each_type_keeps_its_invariant() -> None:
    vq = VQVAE.from_preset("digits")
    masked = MaskedAutoencoder.from_preset("digits")
    assert straight_through_gap(vq, images()) <= 1e-12
    assert nearest_gap(vq.codebook, torch.randn(200, 8)) <= 1e-12
    assert contraction_gap(RegularisedAutoencoder.from_preset("contractive"), images()) <= 1e-12
    assert leak_gap(masked, images(), masked.draw_visible(6, torch.device("cpu"))) == 0


def test_broken_types_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    vq, look_up = VQVAE.from_preset("digits"), Codebook.forward

    def doubled(book: Codebook, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantised, indices = look_up(book, z)
        return quantised + z - z.detach(), indices

    monkeypatch.setattr(Codebook, "forward", doubled)
    assert straight_through_gap(vq, images()) > 1e-3
    monkeypatch.setattr(Codebook, "nearest", lambda book, rows: (rows @ book.vectors.T).argmax(1))
    assert nearest_gap(vq.codebook, torch.randn(200, 8)) > 1e-3
    contractive = RegularisedAutoencoder.from_preset("contractive")
    monkeypatch.setattr(
        RegularisedAutoencoder, "contraction", lambda net, h: h.square() @ net.encoder.weight.square().sum(1)
    )
    assert contraction_gap(contractive, images()) > 1e-3
    masked = MaskedAutoencoder.from_preset("digits")
    monkeypatch.setattr(MaskedAutoencoder, "loss", lambda net, x, y, mask: (x - y).square().mean())
    assert leak_gap(masked, images(), masked.draw_visible(6, torch.device("cpu"))) > 1e-3
