"""Autoencoders whose code may be wider than the image, held back by a penalty instead of by its size.

    x [N, D] -> h = sigmoid(W x + b) [N, H] -> V h + c [N, D]

- sparse: the mean activity of every unit is drawn to a small rho by KL(rho || activity) (Ng 2011, "Sparse autoencoder",
  section 3), or all activities to 0 by their sum (L1);
- k-sparse: only the k largest activities of each image pass (Makhzani & Frey 2014, section 2.1);
- contractive: |dh/dx|_F^2 is kept small (Rifai, Vincent, Muller, Glorot & Bengio 2011, equation 4), for a sigmoid layer
  sum_j (h_j (1 - h_j))^2 |W_j|^2 (equation 5).

What differs: V is not W transposed; the k-sparse units are ReLU's, so that a unit that is left out and one that is silent are
the same to the decoder (the paper's are linear).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets

PENALTIES = ("none", "kl", "l1", "k", "contractive")


def sparsity_kl(activity: Tensor, rho: float) -> Tensor:
    """Sum over units of KL(Bernoulli(rho) || Bernoulli(activity)) in nats, activity [H] in (0, 1)."""
    target = torch.full_like(activity, rho)
    return (torch.xlogy(target, target / activity) + torch.xlogy(1 - target, (1 - target) / (1 - activity))).sum()


def largest(h: Tensor, k: int) -> Tensor:
    """h [N, H] with all but the k largest of each row set to 0."""
    return torch.zeros_like(h).scatter(1, *_top(h, k))


def _top(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = h.topk(k, dim=1)
    return indices, values


class RegularisedAutoencoder(Presets, nn.Module):
    """Args:
        inputs: D, numbers in a flattened image. units: H.
        penalty: "none", "kl", "l1", "k" or "contractive".
        weight: of the penalty in `objective`.
        rho: wanted mean activity of a unit, for "kl". k: units that pass, for "k".

    Shape:
        image [N, ...] of D numbers each -> reconstruction of the same shape; encode gives [N, units].

    Raises:
        ValueError: an unknown penalty, a rho outside (0, 1), a k outside 1..units, images of another size.
    """

    PRESETS = {
        "sparse": dict(inputs=64, units=128, penalty="kl", weight=1e-2, rho=0.05),
        "l1": dict(inputs=64, units=128, penalty="l1", weight=1e-3),
        "k_sparse": dict(inputs=64, units=128, penalty="k", k=10),
        "contractive": dict(inputs=64, units=128, penalty="contractive", weight=1e-3),
        "plain": dict(inputs=64, units=128, penalty="none"),
    }

    def __init__(
        self,
        inputs: int = 784,
        units: int = 1000,
        penalty: str = "kl",
        weight: float = 1e-3,
        rho: float = 0.05,
        k: int = 25,
    ) -> None:
        super().__init__()
        if penalty not in PENALTIES:
            known = ", ".join(map(repr, PENALTIES))
            raise ValueError(f"RegularisedAutoencoder: penalty must be one of {known}: got {penalty!r}")
        if not 0 < rho < 1:
            raise ValueError(f"RegularisedAutoencoder: rho must be between 0 and 1: got {rho}")
        if penalty == "k" and not 1 <= k <= units:
            raise ValueError(f"RegularisedAutoencoder: k must be from 1 to units = {units}: got {k}")
        self.inputs, self.kind, self.weight, self.rho, self.k = inputs, penalty, weight, rho, k
        self.encoder = nn.Linear(inputs, units, activation="relu" if penalty == "k" else "sigmoid")
        self.decoder = nn.Linear(units, inputs)

    def encode(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        if flat.shape[1] != self.inputs:
            raise ValueError(f"RegularisedAutoencoder: image must have {self.inputs} numbers: got {list(image.shape)}")
        h = self.encoder(flat)
        return largest(h, self.k) if self.kind == "k" else h

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encode(image)).view_as(image)

    def penalty(self, h: Tensor) -> Tensor:
        """The term beside the squared error, without its weight, a scalar; h [N, units]."""
        if self.kind == "kl":
            return sparsity_kl(h.mean(0), self.rho)
        if self.kind == "l1":
            return h.abs().sum(1).mean()
        if self.kind == "contractive":
            return self.contraction(h).mean()
        return h.new_zeros(())

    def contraction(self, h: Tensor) -> Tensor:
        """Squared Frobenius norm of dh/dx of every image, [N] (equation 5); sigmoid units."""
        return (h * (1 - h)).square() @ self.encoder.weight.square().sum(1)

    def objective(self, image: Tensor) -> Tensor:
        """Mean squared error and the weighted penalty, a scalar."""
        h = self.encode(image)
        return (self.decoder(h) - image.flatten(1)).square().mean() + self.weight * self.penalty(h)
