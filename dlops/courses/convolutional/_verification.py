"""The protocol of verification, and the losses of `dlops.models.vision.metric_losses` once more, written as their definitions."""

from __future__ import annotations

import torch
from torch import Tensor


def pairs(embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(cosine [P], same [P] bool) of all P = N (N - 1) / 2 pairs; embedding [N, F] of unit length, label [N]."""
    first, second = torch.triu_indices(len(label), len(label), 1, device=label.device)
    return (embedding @ embedding.T)[first, second], label[first] == label[second]


def rates(score: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(false acceptances, true acceptances) [T], float64 from 0 to 1, as the threshold falls through all scores."""
    order = score.argsort(descending=True)
    score, hit = score[order], positive[order].bool()
    last = torch.cat([score[1:] != score[:-1], score.new_ones(1, dtype=torch.bool)])  # of every run of equal scores
    zero = torch.zeros(1, dtype=torch.float64, device=score.device)
    curves = ((~hit).double().cumsum(0)[last], hit.double().cumsum(0)[last])
    false, true = (torch.cat([zero, curve / curve[-1]]) for curve in curves)
    return false, true


def equal_error_rate(score: Tensor, positive: Tensor) -> float:
    """The rate of false acceptances where it equals that of false rejections, on the straight line between two thresholds."""
    false, true = rates(score, positive)
    gap = false - (1 - true)  # from -1 to 1
    k = int((gap >= 0).nonzero()[0])
    if k == 0:
        return false[0].item()
    share = -gap[k - 1] / (gap[k] - gap[k - 1])
    return (false[k - 1] + share * (false[k] - false[k - 1])).item()


def sup_con_by_loops(embedding: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Khosla et al. 2020, equation 2, as it stands there: sums over i, p in P(i) and a in A(i)."""
    z = embedding / embedding.norm(dim=1, keepdim=True)
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        partners = [p for p in others if label[p] == label[i]]
        if partners:
            whole = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
            anchors.append(-sum(torch.log(torch.exp(z[i] @ z[p] / temperature) / whole) for p in partners) / len(partners))
    return sum(anchors) / len(anchors)


def triplet_gradient_by_hand(embedding: Tensor, label: Tensor, margin: float) -> Tensor:
    """Of the triplet loss: every triplet inside the margin adds 2 (n - p) to its anchor, 2 (p - a) to its positive and
    2 (a - n) to its negative (Schroff et al. 2015, from equation 3), over the number of anchors and positives."""
    gradient = torch.zeros_like(embedding)
    count = 0
    for a in range(len(label)):
        squares = (embedding - embedding[a]).square().sum(1)
        others = [n for n in range(len(label)) if label[n] != label[a]]
        for p in range(len(label)):
            if p == a or label[p] != label[a] or not others:
                continue
            count += 1
            farther = [n for n in others if squares[n] > squares[p]]
            n = min(farther, key=lambda n: squares[n]) if farther else max(others, key=lambda n: squares[n])
            if squares[p] - squares[n] + margin > 0:
                gradient[a] += 2 * (embedding[n] - embedding[p])
                gradient[p] += 2 * (embedding[p] - embedding[a])
                gradient[n] += 2 * (embedding[a] - embedding[n])
    return gradient / count
