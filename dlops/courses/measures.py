"""Measures that many recipes share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dlops.courses.session import Session


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
