"""What the rows of the autoencoder chapter share: the digits as they are used here, PCA as the yardstick, codes and
reconstructions of a trained network, angles between subspaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dlops.courses.data.digits import Digits, load_digits
from dlops.courses.plan import Plan

if TYPE_CHECKING:
    from dlops.courses.session import Session

CODE = 8
PLAN = Plan(epochs=80, batch=64, lr=3e-3)


def unit_digits() -> tuple[Digits, Digits]:
    """(training, test), from 0 (paper) to 1 (ink): the range of a sigmoid."""
    return load_digits(low=0.0)


def reconstruction_loss(network: nn.Module, images: Tensor) -> Tensor:
    """Mean over samples and pixels of (g(f(x)) - x)^2."""
    return mse_loss(network(images), images)


def through(session: Session, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`function` (a network, or its encode or decode) of `inputs`, with the session's kernels, on the CPU."""
    (inputs,) = session.to_device(inputs)
    with torch.no_grad(), session.kernels():
        return function(inputs).cpu()


def mean_squared_error(a: Tensor, b: Tensor) -> float:
    """Mean over samples and pixels, in float64."""
    return (a.double() - b.double()).square().mean().item()


@dataclass(frozen=True)
class PCA:
    """Principal components of samples [N, ...], in float64: orthonormal `components` [D, k], largest variance first."""

    mean: Tensor  # [D]
    components: Tensor

    @classmethod
    def fit(cls, samples: Tensor, k: int) -> PCA:
        flat = samples.flatten(1).double()
        mean = flat.mean(0)
        return cls(mean, torch.linalg.svd(flat - mean, full_matrices=False).Vh[:k].T)

    def encode(self, samples: Tensor) -> Tensor:
        """[N, ...] -> [N, k]"""
        return (samples.flatten(1).double() - self.mean) @ self.components

    def decode(self, code: Tensor) -> Tensor:
        """[N, k] -> [N, D]"""
        return code.double() @ self.components.T + self.mean

    def error(self, samples: Tensor) -> float:
        """Mean squared error of the reconstructions."""
        return mean_squared_error(self.decode(self.encode(samples)), samples.flatten(1))


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles [k] in radians between the spaces that the columns of a and b [D, k] span, smallest first.

    From sines where the cosine is near 1, which rounds to an angle of 1e-8 otherwise (Bjorck & Golub 1973)."""
    a, b = (torch.linalg.qr(part.double())[0] for part in (a, b))
    cosines = torch.linalg.svdvals(a.T @ b).clamp(max=1)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1).flip(0)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
