"""The penalties of sparse, k-sparse and contractive autoencoders against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

import dlops
from dlops.bench.stock import stock
from dlops.models.autoencoders.regularised import RegularisedAutoencoder, largest, sparsity_kl

PRESETS = ("sparse", "l1", "k_sparse", "contractive", "plain")


def made(preset: str, **overrides: object) -> RegularisedAutoencoder:
    torch.manual_seed(0)
    return RegularisedAutoencoder.from_preset(preset, **overrides).double()


def image(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def test_the_sparsity_penalty_is_the_divergence_of_two_coins() -> None:
    activity = torch.tensor([0.05, 0.2, 0.9]).double()
    exact = kl_divergence(Bernoulli(torch.tensor(0.05).double()), Bernoulli(activity)).sum()
    torch.testing.assert_close(sparsity_kl(activity, 0.05), exact)
    assert sparsity_kl(activity[:1], 0.05).abs() < 1e-12


def test_the_contractive_penalty_is_the_norm_of_the_jacobian() -> None:
    network, x = made("contractive", units=17), image().flatten(1)
    for row, closed in zip(x, network.contraction(network.encode(x))):
        jacobian = torch.autograd.functional.jacobian(lambda v: network.encode(v[None])[0], row)
        torch.testing.assert_close(closed, jacobian.square().sum(), rtol=1e-12, atol=0)


def test_the_contractive_penalty_has_the_gradient_of_the_jacobian() -> None:
    network, x = made("contractive", units=5), image(2).flatten(1)
    weights = tuple(network.encoder.parameters())
    closed = torch.autograd.grad(network.penalty(network.encode(x)), weights)
    jacobians = [torch.autograd.functional.jacobian(network.encode, v[None], create_graph=True) for v in x]
    explicit = torch.autograd.grad(sum(j.square().sum() for j in jacobians) / 2, weights)
    torch.testing.assert_close(closed, explicit)


def test_only_the_k_largest_pass_and_carry_gradients() -> None:
    h = torch.randn(6, 20).double().requires_grad_()
    kept = largest(h, 4)
    threshold = h.sort(dim=1, descending=True).values[:, 3:4]
    assert torch.equal(kept, torch.where(h >= threshold, h, 0))
    kept.sum().backward()
    assert torch.equal(h.grad, (h >= threshold).double())
    assert ((made("k_sparse", k=3).encode(image()) > 0).sum(1) <= 3).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_objective_is_error_and_penalty(preset: str) -> None:
    network, x = made(preset), image()
    expected = (network(x) - x).square().mean() + network.weight * network.penalty(network.encode(x))
    torch.testing.assert_close(network.objective(x), expected)
    assert network(x).shape == x.shape and network.encode(x).shape == (5, 128)
    assert (network.penalty(network.encode(x)) > 0) == (preset in ("sparse", "l1", "contractive"))


def test_the_sparse_one_reaches_its_activity() -> None:
    network, x = made("sparse", weight=1.0, units=16), image(32)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        network.objective(x).backward()
        optimiser.step()
    torch.testing.assert_close(network.encode(x).mean(0), torch.full((16,), 0.05).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_plain_torch_gives_the_same(preset: str) -> None:
    network, x = made(preset).float(), image().float()
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    with dlops.backend("dlops"), torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="RegularisedAutoencoder: penalty must be one of 'none', 'kl'.*: got 'l7'"):
        RegularisedAutoencoder(penalty="l7")
    with pytest.raises(ValueError, match="RegularisedAutoencoder: rho must be between 0 and 1: got 0"):
        RegularisedAutoencoder(rho=0)
    with pytest.raises(ValueError, match="RegularisedAutoencoder: k must be from 1 to units = 8: got 9"):
        RegularisedAutoencoder(units=8, penalty="k", k=9)
    with pytest.raises(ValueError, match=r"RegularisedAutoencoder: image must have 64 numbers: got \[2, 1, 8, 9\]"):
        made("sparse")(torch.zeros(2, 1, 8, 9).double())
