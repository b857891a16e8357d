"""Losses and measures that many recipes share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from dlops.courses.session import Session


def classification_loss(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the logits of `inputs` [N, ...] with their labels [N]."""
    return cross_entropy(network(inputs), labels)


def accuracy(session: Session, network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of `inputs` [N, ...] whose largest logit is that of their label [N]."""
    inputs, labels = session.to_device(inputs, labels)
    with torch.no_grad(), session.kernels():
        return (network(inputs).argmax(1) == labels).double().mean().item()


def precision_gap(session: Session, network: nn.Module, inputs: Tensor) -> float:
    """Largest difference between the outputs in float32, with the session's kernels, and in float64."""
    (inputs,) = session.to_device(inputs)
    with torch.no_grad(), session.kernels():
        exact = copy.deepcopy(network).double()(inputs.double())
        return (network(inputs).double() - exact).abs().max().item()


def auroc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    The Mann-Whitney statistic: (sum of the ranks of the positives - P (P + 1) / 2) / (P N), tied scores sharing their rank.

    Raises:
        ValueError: no positive, or no negative.
    """
    positive = positive.bool()
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        raise ValueError(f"auroc: positive must hold both kinds: got {p} positive and {n} negative")
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    ranks = count.cumsum(0).double() - (count - 1).double() / 2
    return ((ranks[place][positive].sum() - p * (p + 1) / 2) / (p * n)).item()
