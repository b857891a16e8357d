"""The catalogue of losses, each as its definition reads: the mean over the samples, differentiable, in any precision.

For reading, and to compare torch's with: the recipes train with torch.nn.functional. N samples, K classes, E coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_squares(prediction: Tensor, target: Tensor) -> Tensor:
    """(y - t)^2: the log-likelihood of a normal variable of known variance. All shapes equal."""
    return (prediction - target).square().mean()


def mean_absolute(prediction: Tensor, target: Tensor) -> Tensor:
    """|y - t|: its best constant is the median. All shapes equal."""
    return (prediction - target).abs().mean()


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Squares near 0, straight beyond `delta` (Huber 1964): outliers pull with bounded force."""
    distance = (prediction - target).abs()
    return torch.where(distance <= delta, distance.square() / 2, delta * (distance - delta / 2)).mean()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p(label) with p = softmax(logits); logits [N, K], label [N]."""
    shifted = logits - logits.amax(1, keepdim=True).detach()  # no exponential overflows
    log_p = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -log_p[torch.arange(len(label)), label].mean()


def smoothed_cross_entropy(logits: Tensor, label: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with (1 - s) on the label and s spread over all K classes (Szegedy et al. 2016, section 7)."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return (1 - smoothing) * cross_entropy(logits, label) - smoothing * log_p.mean()


def binary_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """-t log p - (1 - t) log(1 - p) with p = sigmoid(logit), as max(z, 0) - t z + log(1 + exp(-|z|)): no logarithm of 0."""
    return (logit.clamp(min=0) - target * logit + torch.log1p((-logit.abs()).exp())).mean()


def hinge(logits: Tensor, label: Tensor, margin: float = 1.0) -> Tensor:
    """max(0, margin - z_label + z_k), summed over the other classes, over K (Weston & Watkins 1999; over K as in torch)."""
    rows = torch.arange(len(label))
    excess = (margin - logits[rows, label][:, None] + logits).clamp(min=0)
    others = torch.ones_like(excess).index_put((rows, label), torch.zeros((), dtype=excess.dtype))
    return (excess * others).sum(1).mean() / logits.shape[1]


def kl_divergence(log_q: Tensor, p: Tensor) -> Tensor:
    """Sum over the classes of p (log p - log q), p = 0 counting 0; both [N, K]."""
    return (torch.special.xlogy(p, p) - p * log_q).sum(1).mean()


def poisson(log_rate: Tensor, count: Tensor) -> Tensor:
    """exp(z) - t z: the negative log-likelihood of counts, without the term that does not depend on z."""
    return (log_rate.exp() - count * log_rate).mean()


def gaussian(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """(log v + (t - m)^2 / v) / 2: a network that predicts its own uncertainty (Nix & Weigend 1994)."""
    return ((variance.log() + (target - mean).square() / variance) / 2).mean()


def cosine(first: Tensor, second: Tensor, same: Tensor) -> Tensor:
    """1 - cos for pairs that belong together (same = 1), max(0, cos) for the others (-1); [N, E], [N, E], [N]."""
    cos = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return torch.where(same == 1, 1 - cos, cos.clamp(min=0)).mean()


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0) -> Tensor:
    """max(0, |a - p| - |a - n| + margin) (Schroff et al. 2015, with distances not squared as in torch); all [N, E]."""
    near, far = (anchor - positive).norm(dim=1), (anchor - negative).norm(dim=1)
    return (near - far + margin).clamp(min=0).mean()
