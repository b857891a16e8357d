"""E7. The variational autoencoder: a bound on the likelihood of digits, and its tightening by importance weights.

The digits are binarised (ink above half: 1), so that a Bernoulli decoder is a likelihood and nats are nats of a discrete
distribution. Two baselines, both fitted to the training digits, both blind to how pixels go together:

- diagonal Gaussian: a density, made comparable by adding uniform noise in [0, 1) to every binary pixel; the mean log-density
  of noisy pixels is a lower bound of a discrete log-likelihood (Theis, van den Oord, Bethge 2016, section 3.1);
- independent Bernoulli pixels: the better of the two, since pixels that never see ink cost nothing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.vae import VAE, gaussian_kl, gaussian_log_density

if TYPE_CHECKING:
    from dlops.courses.session import Session

PLAN = Plan(epochs=100, batch=128, lr=4e-3)
WEIGHTED = 5  # samples per image in the training by the importance-weighted bound
SIZES = dict(code=16)


def binarise(images: Tensor) -> Tensor:
    """Ink above half is 1, the rest 0."""
    return (images >= 0.5).to(images.dtype)


def loss(network: VAE, images: Tensor) -> Tensor:
    return network.objective(images)


def weighted_loss(network: VAE, images: Tensor) -> Tensor:
    """The negative importance-weighted bound."""
    return -network.iwae(images, WEIGHTED).mean()


def bernoulli_baseline(training: Tensor, test: Tensor) -> float:
    """Nats per test image of independent pixels; each probability starts from one imagined image of either kind."""
    p = (training.double().sum(0) + 1) / (len(training) + 2)
    test = test.double()
    return -(test * p.log() + (1 - test) * (1 - p).log()).flatten(1).sum(1).mean().item()


def gaussian_baseline(training: Tensor, test: Tensor) -> float:
    """Nats per test image of independent Gaussians on pixels with uniform noise in [0, 1): in closed form, as the noise adds
    1/2 to the mean and 1/12 to the variance."""
    training, test = training.double().flatten(1), test.double().flatten(1)
    mean, variance = training.mean(0), training.var(0, unbiased=False) + 1 / 12
    spread = (test - mean).square() + 1 / 12  # expectation over the noise of the test pixel
    return 0.5 * (spread / variance + (2 * torch.pi * variance).log()).sum(1).mean().item()


def kl_gap(network: VAE, images: Tensor, samples: int, generator: torch.Generator) -> float:
    """|analytic - Monte Carlo| / analytic of KL(q || N(0, I)), summed over `images`. q is q(z|x) moved by 1: that of a network
    before training is the prior itself, and has no divergence to compare."""
    mean, log_variance = network.encode(images)
    mean = mean + 1
    z = network.reparameterise(mean, log_variance, samples, generator)
    drawn = (gaussian_log_density(z, mean, log_variance) - gaussian_log_density(z)).mean(0).sum()
    exact = gaussian_kl(mean, log_variance).sum()
    return ((drawn - exact) / exact).abs().item()


def quadrature(network: VAE, images: Tensor, points: int = 4001) -> Tensor:
    """log p(x) [N] of a network with a code of one dimension, by the trapezoidal rule over z from -8 to 8."""
    z = torch.linspace(-8, 8, points, dtype=images.dtype, device=images.device)[:, None, None].expand(
        -1, len(images), 1
    )
    joint = network.log_likelihood(images, z) + gaussian_log_density(z)
    return joint.logsumexp(0) + torch.tensor(16 / (points - 1), dtype=images.dtype).log()


class VariationalAutoencoder(Recipe):
    row = "E7"
    title = "Variational autoencoder"
    title_es = "Autoencoder variacional"
    syllabi = ("S0", "S1", "S4")
    source = "Kingma & Welling 2014, equation 10; Burda et al. 2016, equation 8; Higgins et al. 2017"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), binarised at half ink; a fifth held out"
    absent = "the papers' binarised MNIST (28x28) is a download: their 82-87 nats cannot be checked here"
    models = ("dlops.models.autoencoders.vae",)
    kernels = ("conv", "norm")
    goals = (
        Goal("nats above diagonal Gaussian", ">=", 15.0, "ELBO of held-out binarised digits"),
        Goal("nats above independent Bernoulli", ">=", 6.5, "ELBO of held-out binarised digits"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = (binarise(part.images) for part in load_digits(low=0.0))
        gaussian, bernoulli = gaussian_baseline(training, test), bernoulli_baseline(training, test)
        network = session.build("vae", lambda: VAE.from_preset("digits", **SIZES))
        network = session.fit("vae", network, loss, (training,), PLAN).network
        weighted = session.build("vae", lambda: VAE.from_preset("digits", **SIZES))  # from the same weights
        weighted = session.fit("iwae", weighted, weighted_loss, (training,), PLAN).network

        (inputs,) = session.to_device(test)
        generator = session.generator("bounds")
        with torch.no_grad(), session.kernels():
            elbo = network.elbo(inputs, 50, generator).mean().item()
            k = 5 if session.quick else 200
            tight = [trained.iwae(inputs, k, generator).mean().item() for trained in (network, weighted)]
            pixels = test[:10], network.reconstruct(inputs[:10]), network.sample(20, session.generator("drawn"))
        scores = {
            "nats above diagonal Gaussian": elbo + gaussian,
            "nats above independent Bernoulli": elbo + bernoulli,
            "negative ELBO": -elbo,
            "negative IWAE-200 bound": -tight[0],
            "negative IWAE-200 bound, trained by IWAE-5": -tight[1],
            "independent Bernoulli": bernoulli,
            "diagonal Gaussian": gaussian,
        }
        titles = ("binarised digits, held out", "reconstructed from 16 numbers", "drawn from the prior")
        checks = self._check(session, network, inputs[:120])
        return Outcome(scores, checks, lambda: pictures.tiles(list(zip(titles, pixels)), low=0, high=1))

    def _check(self, session: Session, network: VAE, images: Tensor) -> list[Check]:
        """In float64."""
        network, images = copy.deepcopy(network).double(), images.double()
        generator = session.generator("checks")
        with torch.no_grad(), session.kernels():
            gap = kl_gap(network, images[:64], 4000, generator)
            bounds = [network.elbo(images, 50, generator).mean().item()]
            for k, repeats in ((5, 10), (50, 2)):
                means = [network.iwae(images, k, generator).mean() for _ in range(repeats)]
                bounds.append(torch.stack(means).mean().item())
            narrow = session.build("narrow", lambda: VAE.from_preset("digits", code=1, hidden=(32,))).double()
            exact = quadrature(narrow, images[:8])
            distance = (narrow.iwae(images[:8], 20_000, generator) - exact).abs().max().item()
        rise = min(after - before for before, after in zip(bounds, bounds[1:]))
        return [
            Check("KL, analytic and Monte Carlo, relative difference", gap, "<=", 0.01),
            Check("least rise of the bound from ELBO to IWAE-5 to IWAE-50, nats", rise, ">=", 0.0),
            Check("IWAE-20000 and log p(x) by quadrature, largest difference, nats", distance, "<=", 0.02),
        ]

    def step(self, session: Session) -> Step:
        training, _ = load_digits(low=0.0)
        batch = (binarise(training.images[: PLAN.batch]),)
        return Step(lambda: VAE.from_preset("digits", **SIZES), loss, batch, PLAN)
