"""The variational autoencoder: its densities against torch.distributions, its bounds against each other and the truth."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import dlops
from dlops.bench.stock import stock
from dlops.models.autoencoders.vae import VAE, gaussian_kl, gaussian_log_density

FORMS = ("digits", "digits_conv")


def made(preset: str = "digits", **overrides: object) -> VAE:
    torch.manual_seed(0)
    return VAE.from_preset(preset, **overrides).double()


def images(n: int = 6, side: int = 8) -> torch.Tensor:
    return (torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1)) > 0.5).double()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_the_paper_has_as_many_parameters() -> None:
    """MNIST, 500 hidden units, 20 latent ones: 784-500-40 and 20-500-784."""
    by_hand = (784 * 500 + 500) + (500 * 40 + 40) + (20 * 500 + 500) + (500 * 784 + 784)
    assert sum(p.numel() for p in VAE.from_preset("original").parameters()) == by_hand


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("preset", FORMS)
def test_shapes(preset: str, likelihood: str) -> None:
    network, x = made(preset, likelihood=likelihood), images()
    reconstruction, mean, log_variance = network(x)
    assert reconstruction.shape == x.shape == network.reconstruct(x).shape
    assert mean.shape == log_variance.shape == (6, 8)
    assert network.reparameterise(mean, log_variance, 3).shape == (3, 6, 8)
    assert network.sample(4).shape == (4, 1, 8, 8)
    assert network.decode(torch.zeros(2, 3, 8).double()).shape == (2, 3, 1, 8, 8)
    assert network.elbo(x).shape == network.iwae(x, 5).shape == (6,)
    network.objective(x).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_densities_equal_those_of_torch_distributions() -> None:
    mean, log_variance, z = torch.randn(3, 4, 5, generator=seeded(), dtype=torch.float64)
    q, p = Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), kl_divergence(q, p).sum(1))
    torch.testing.assert_close(gaussian_log_density(z, mean, log_variance), q.log_prob(z).sum(1))
    torch.testing.assert_close(gaussian_log_density(z), p.log_prob(z).sum(1))


def test_kl_equals_monte_carlo() -> None:
    network, x = made(), images()
    mean, log_variance = network.encode(x)
    mean, log_variance = 1 + mean, log_variance - 1
    z = network.reparameterise(mean, log_variance, 20_000, seeded())
    drawn = (gaussian_log_density(z, mean, log_variance) - gaussian_log_density(z)).mean(0)
    torch.testing.assert_close(drawn, gaussian_kl(mean, log_variance), rtol=0.01, atol=0)


def test_reparameterised_draws_have_the_moments_and_carry_gradients() -> None:
    network = made()
    mean = torch.tensor([[1.0, -2.0]]).double().requires_grad_()
    log_variance = torch.tensor([[0.5, -1.0]]).double().requires_grad_()
    z = network.reparameterise(mean, log_variance, 40_000, seeded())
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0).log(), log_variance, rtol=0, atol=0.03)
    z.mean().backward()
    torch.testing.assert_close(mean.grad, torch.full_like(mean, 0.5))
    assert log_variance.grad.abs().max() < 0.01 < 0.2 * log_variance.detach().exp().max()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_bounds_grow_to_the_likelihood(likelihood: str) -> None:
    """log p(x) of a one-dimensional code by quadrature; the bound grows with the samples and ends there."""
    network, x = made(code=1, hidden=(16,), likelihood=likelihood), images()
    with torch.no_grad():
        network.decoder[0].weight.mul_(6)  # so that the posterior is not the prior
        z = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None, None].expand(-1, 6, 1)
        exact = (network.log_likelihood(x, z) + gaussian_log_density(z)).logsumexp(0) + math.log(18 / 2000)
        bounds = [network.elbo(x, 2000, seeded()).mean()]
        for k in (2, 10):
            bounds.append(network.iwae(x.repeat(300, 1, 1, 1), k, seeded()).mean())
        last = network.iwae(x, 20_000, seeded())
    for before, after in zip(bounds, [*bounds[1:], last.mean()]):
        assert before + 1e-3 < after
    torch.testing.assert_close(last, exact, rtol=0, atol=0.1)


def test_elbo_is_the_mean_of_the_log_weights() -> None:
    network, x = made(), images()
    drawn = network.log_weights(x, 1000, seeded()).mean(0)
    torch.testing.assert_close(network.elbo(x, 1000, seeded()), drawn, rtol=0, atol=0.05)
    torch.testing.assert_close(network.iwae(x, 1, seeded()), network.log_weights(x, 1, seeded())[0])


def test_beta_weighs_the_divergence() -> None:
    network, x = made(beta=1.0), images()
    plain = network.objective(x, generator=seeded())
    network.beta = 4.0
    divergence = gaussian_kl(*network.encode(x)).mean()
    torch.testing.assert_close(network.objective(x, generator=seeded()) - plain, 3 * divergence)
    torch.testing.assert_close(-network.elbo(x, generator=seeded()).mean(), plain)  # the bound knows no beta


@pytest.mark.parametrize("preset", FORMS)
def test_plain_torch_gives_the_same(preset: str) -> None:
    network = made(preset).float()
    plain, x = stock(network), images().float()
    assert list(plain.state_dict()) == list(network.state_dict())
    with dlops.backend("dlops"), torch.no_grad():
        ours = network.elbo(x, 3, seeded())
    torch.testing.assert_close(ours, plain.elbo(x, 3, seeded()), rtol=1e-5, atol=1e-5)


def test_a_copy_in_float32_agrees() -> None:
    network, x = made(), images()
    rough = copy.deepcopy(network).float().reconstruct(x.float())
    torch.testing.assert_close(rough.double(), network.reconstruct(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (dict(form="round"), "VAE: form must be 'dense' or 'conv': got 'round'"),
        (dict(likelihood="poisson"), "VAE: likelihood must be 'bernoulli' or 'gaussian': got 'poisson'"),
        (dict(code=0), "VAE: code must be at least 1: got 0"),
        (dict(form="conv", side=7, hidden=(4, 4)), "side must be a multiple of"),
    ],
)
def test_bad_arguments(arguments: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        VAE(**arguments)


def test_bad_images_and_codes() -> None:
    network = made()
    with pytest.raises(ValueError, match=r"VAE: image must be \[N, 1, 8, 8\]: got \[2, 1, 9, 8\]"):
        network.elbo(torch.zeros(2, 1, 9, 8).double())
    with pytest.raises(ValueError, match=r"VAE: z must be \[..., 8\]: got \[2, 7\]"):
        network.decode(torch.zeros(2, 7).double())
    with pytest.raises(ValueError, match="VAE: no preset 'huge', expected one of 'original', 'digits', 'digits_conv'"):
        VAE.from_preset("huge")
