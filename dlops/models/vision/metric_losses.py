"""Losses that learn a distance: images of one class close together, images of two classes apart.

All take embeddings [N, F] and labels [N] of a whole batch, use every pair or triplet in it, and return a scalar.
The batch must hold classes with two samples or more: what has no partner adds nothing.

contrastive     Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4
triplet         Schroff, Kalenichenko, Philbin 2015, "FaceNet", eq. 3, semi-hard negatives of section 3.2
sup_con         Khosla et al. 2020, "Supervised contrastive learning", eq. 2 (the sum outside the logarithm)
ArcFace         Deng, Guo, Xue, Zafeiriou 2019, "ArcFace: additive angular margin loss", eq. 3
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from dlops import nn


def _check(name: str, embedding: Tensor, label: Tensor) -> None:
    if embedding.dim() != 2 or label.shape != embedding.shape[:1]:
        raise ValueError(
            f"{name}: embedding must be [N, F] and label [N]: got {list(embedding.shape)} and {list(label.shape)}"
        )


def _partners(label: Tensor) -> tuple[Tensor, Tensor]:
    """(same, other): bool [N, N], whether j is another sample of i's class, whether j is of another class."""
    equal = label[:, None] == label
    return equal & ~torch.eye(len(label), dtype=torch.bool, device=label.device), ~equal


def _distances(embedding: Tensor) -> Tensor:
    """Euclidean [N, N], from differences: exact for points that coincide, with gradient 0 there."""
    return torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")


def contrastive(embedding: Tensor, label: Tensor, margin: float = 1.0) -> Tensor:
    """Half the squared distance D of equal pairs, half of max(0, margin - D) squared of unequal ones, over all pairs."""
    _check("contrastive", embedding, label)
    same, other = _partners(label)
    distance = _distances(embedding)
    loss = same * distance.square() + other * (margin - distance).clamp_min(0).square()
    return loss.sum() / (2 * max(len(label) * (len(label) - 1), 1))


def semi_hard(distance: Tensor, label: Tensor) -> Tensor:
    """For every anchor i and positive j, the index [N, N] of the negative: the nearest that is farther than the positive;
    where there is none, the farthest (whose loss is the smallest). Meaningless where j is no positive of i."""
    _, other = _partners(label)
    farther = other[:, None] & (distance[:, None] > distance[..., None])  # [anchor, positive, negative]
    nearest = distance[:, None].masked_fill(~farther, math.inf).argmin(-1)
    farthest = distance.masked_fill(~other, -math.inf).argmax(-1)
    return torch.where(farther.any(-1), nearest, farthest[:, None])


def triplet(embedding: Tensor, label: Tensor, margin: float = 0.2) -> Tensor:
    """max(0, d(anchor, positive)^2 - d(anchor, negative)^2 + margin), the mean over all anchors and positives, each with
    its semi-hard negative; the paper's margin. 0 for a batch without a triplet."""
    _check("triplet", embedding, label)
    same, other = _partners(label)
    distance = _distances(embedding)
    negative = semi_hard(distance.detach(), label)
    squares = distance.square()
    loss = (squares - squares.gather(1, negative) + margin).clamp_min(0)
    chosen = same & other.any(1, keepdim=True)
    return (loss * chosen).sum() / chosen.sum().clamp_min(1)


def sup_con(embedding: Tensor, label: Tensor, temperature: float = 0.1) -> Tensor:
    """Minus the log-probability that softmax(cosine / temperature) over the rest of the batch gives to a partner: the mean
    over an anchor's partners, then over the anchors that have any."""
    _check("sup_con", embedding, label)
    same, _ = _partners(label)
    embedding = normalize(embedding, dim=1)
    logits = embedding @ embedding.T / temperature
    logits = logits.masked_fill(torch.eye(len(label), dtype=torch.bool, device=label.device), -math.inf)
    log_share = logits.log_softmax(1).masked_fill(~same, 0)
    partners = same.sum(1)
    return -(log_share.sum(1) / partners.clamp_min(1)).sum() / (partners > 0).sum().clamp_min(1)


class ArcFace(nn.Module):
    """Class centres on the sphere, and logits = scale * cosine, where the angle to the right centre is made larger by
    `margin`: classes are pushed apart until they are right with that much to spare. Cross-entropy follows.

    Beyond pi - margin, where cos(angle + margin) would rise again, the logit goes on along cos(angle) - margin * sin(margin),
    as in the authors' code.

    Args:
        features: length of the embedding. classes: number of centres.
        scale, margin: the paper's s and m; margin in radians, from 0 to below pi.

    Shape:
        embedding [N, features], label [N] -> loss; `logits` -> [N, classes].

    Raises:
        ValueError: a margin outside [0, pi), a scale that is not positive.
    """

    def __init__(self, features: int, classes: int, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__()
        if not 0 <= margin < math.pi:
            raise ValueError(f"ArcFace: margin must be from 0 to below pi: got {margin}")
        if not scale > 0:
            raise ValueError(f"ArcFace: scale must be positive: got {scale}")
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, features)))

    def logits(self, embedding: Tensor, label: Tensor) -> Tensor:
        cosine = linear(normalize(embedding, dim=1), normalize(self.weight, dim=1))
        right = cosine.gather(1, label[:, None])
        sine = (1 - right.square()).clamp_min(torch.finfo(right.dtype).eps).sqrt()  # its slope is infinite at 0
        moved = right * math.cos(self.margin) - sine * math.sin(self.margin)  # cos(angle + margin)
        beyond = right < math.cos(math.pi - self.margin)
        moved = torch.where(beyond, right - self.margin * math.sin(self.margin), moved)
        return self.scale * cosine.scatter(1, label[:, None], moved)

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        _check("ArcFace", embedding, label)
        return cross_entropy(self.logits(embedding, label), label)
