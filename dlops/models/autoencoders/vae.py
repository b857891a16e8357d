"""The variational autoencoder: Kingma & Welling 2014, "Auto-encoding variational Bayes"; beta: Higgins et al. 2017; the
importance-weighted bound: Burda, Grosse, Salakhutdinov 2016.

    encoder q(z|x) = N(mean, exp(log_variance))   (section 3, appendix C.2)     image [N, C, S, S] -> 2 x [N, code]
    z = mean + exp(log_variance / 2) * noise      (section 2.4, the reparameterisation)        -> [N, code]
    decoder p(x|z): Bernoulli or Gaussian         (appendix C.1, C.2)                          -> [N, C, S, S]
    ELBO = E_q[log p(x|z)] - KL(q(z|x) || N(0, I))  (equation 10)

What differs: the layers may be convolutions, or several; one noise per image in training is the paper's L = 1; the Gaussian
decoder has one trained variance for all pixels, not one per pixel, which a network can drive to zero on blank corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dlops import nn
from dlops.models._preset import Presets
from dlops.models.autoencoders.autoencoder import Autoencoder, ConvAutoencoder

FORMS = ("dense", "conv")
LIKELIHOODS = ("bernoulli", "gaussian")
LOG_TAU = math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, [..., code] -> [...] (appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def gaussian_log_density(x: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    """log N(x; mean, exp(log_variance)) in nats, summed over the last axis, [..., D] -> [...]."""
    log_variance = torch.as_tensor(log_variance, dtype=x.dtype, device=x.device)
    return -0.5 * (LOG_TAU + log_variance + (x - mean).square() * (-log_variance).exp()).sum(-1)


def normal_noise(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal, of the device and dtype of `like`; the same numbers on every device where a CPU generator draws them."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


class VAE(Presets, nn.Module):
    """Args:
        code: dimensions of z.
        hidden: widths of the encoder's layers, from the image on; the decoder has them backwards.
        form: "dense", or "conv": every layer halves the side.
        side, channels: of the image.
        activation: of the hidden layers, in the kernel of the layer before.
        likelihood: "bernoulli" (images in [0, 1]; a likelihood only where they are 0 or 1) or "gaussian".
        beta: weight of the KL term in `objective`; 1 is the bound itself.

    Shape:
        image [N, channels, side, side] -> (reconstruction like it, mean [N, code], log_variance [N, code]).

    Raises:
        ValueError: another form or likelihood; a side that the layers cannot halve; an image of another size.
    """

    PRESETS = {
        "original": dict(side=28, hidden=(500,), code=20, activation="tanh"),  # MNIST, section 5
        "digits": dict(side=8, hidden=(256, 256), code=8, activation="relu"),
        "digits_conv": dict(side=8, hidden=(32, 64), code=8, form="conv", activation="relu"),
    }

    def __init__(
        self, code: int = 20, hidden: Sequence[int] = (500,), form: str = "dense", side: int = 28, channels: int = 1,
        activation: str = "tanh", likelihood: str = "bernoulli", beta: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"VAE: form must be 'dense' or 'conv': got {form!r}")
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"VAE: likelihood must be 'bernoulli' or 'gaussian': got {likelihood!r}")
        if code < 1:
            raise ValueError(f"VAE: code must be at least 1: got {code}")
        self.code, self.shape, self.likelihood, self.beta = code, (channels, side, side), likelihood, beta
        if form == "dense":
            halves = partial(Autoencoder, self.shape, hidden=hidden, activation=activation, output=None)
        else:
            halves = partial(ConvAutoencoder, side, channels, hidden, activation=activation, output=None)
        self.encoder, self.decoder = halves(code=2 * code).encoder, halves(code=code).decoder
        if form == "dense":
            self.encoder.insert(0, nn.Flatten())
            self.decoder.append(nn.Unflatten(1, self.shape))
        if likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.tensor(-2.0))  # of a pixel around the decoder's mean

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, C, S, S] -> mean and log-variance of q(z|x), each [N, code]."""
        if image.dim() != 4 or image.shape[1:] != self.shape:
            raise ValueError(f"VAE: image must be [N, {', '.join(map(str, self.shape))}]: got {list(image.shape)}")
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return mean, log_variance

    def reparameterise(
        self, mean: Tensor, log_variance: Tensor, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """`samples` draws from q(z|x) that carry gradients, [samples, N, code]."""
        return mean + (0.5 * log_variance).exp() * normal_noise((samples, *mean.shape), mean, generator)

    def decode(self, z: Tensor) -> Tensor:
        """z [..., code] -> mean of p(x|z), [..., C, S, S], in (0, 1)."""
        return self._logits(z).sigmoid()

    def reconstruct(self, image: Tensor) -> Tensor:
        """The image decoded from the mean of its code."""
        return self.decode(self.encode(image)[0])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images [n, C, S, S], each the mean of p(x|z) for a z from the prior."""
        return self.decode(normal_noise((n, self.code), next(self.parameters()), generator))

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(image)
        return self.decode(self.reparameterise(mean, log_variance, 1, generator)[0]), mean, log_variance

    def log_likelihood(self, image: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats: image [N, C, S, S], z [K, N, code] -> [K, N]."""
        logits = self._logits(z)  # [K, N, C, S, S]
        if self.likelihood == "bernoulli":
            return (
                -binary_cross_entropy_with_logits(logits, image.expand_as(logits), reduction="none").flatten(2).sum(2)
            )
        return gaussian_log_density(image.flatten(1), logits.sigmoid().flatten(2), self.log_variance)

    def elbo(self, image: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """The evidence lower bound of every image in nats, [N]: expectation over `samples` draws, the KL term exact."""
        fit, divergence = self._terms(image, samples, generator)
        return fit - divergence

    def objective(self, image: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """What training minimises, a scalar: the negative bound, its KL term times `beta` (Higgins et al., equation 4)."""
        fit, divergence = self._terms(image, samples, generator)
        return (self.beta * divergence - fit).mean()

    def iwae(self, image: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """The importance-weighted bound of every image, [N]: log of the mean of p(x, z) / q(z|x) over `samples` draws (Burda
        et al., equation 8). In expectation it grows with `samples`, from the ELBO to log p(x)."""
        return self.log_weights(image, samples, generator).logsumexp(0) - math.log(samples)

    def log_weights(self, image: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """log p(x, z) - log q(z|x) of `samples` draws from q, [samples, N]; their mean is an estimate of the ELBO."""
        mean, log_variance = self.encode(image)
        z = self.reparameterise(mean, log_variance, samples, generator)
        return self.log_likelihood(image, z) + gaussian_log_density(z) - gaussian_log_density(z, mean, log_variance)

    def _terms(self, image: Tensor, samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encode(image)
        z = self.reparameterise(mean, log_variance, samples, generator)
        return self.log_likelihood(image, z).mean(0), gaussian_kl(mean, log_variance)

    def _logits(self, z: Tensor) -> Tensor:
        if z.shape[-1] != self.code:
            raise ValueError(f"VAE: z must be [..., {self.code}]: got {list(z.shape)}")
        return self.decoder(z.reshape(-1, self.code)).unflatten(0, z.shape[:-1])
