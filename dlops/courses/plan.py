"""How a network is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Args:
        epochs: passes over the data. batch: samples per step; an incomplete last batch is used too.
        optimizer: called with the parameters, `lr` and `weight_decay`: "adamw", "adam", "sgd" (momentum 0.9) or a callable.
        schedule: "one_cycle" (up over a tenth of the steps, then down along a cosine), "cosine" or "constant".
        clip: largest norm of the gradient; None: any.
        average: decay of the moving average of the weights, which then are the result; None: the last weights are.
    """

    epochs: int
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adamw"
    schedule: str = "one_cycle"
    clip: float | None = None
    average: float | None = None

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        settings = dict(lr=self.lr, weight_decay=self.weight_decay)
        if callable(self.optimizer):
            return self.optimizer(parameters, **settings)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=0.9, **settings)
        if self.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
            return kind(parameters, fused=True, **settings)
        raise ValueError(f"Plan: optimizer must be 'adamw', 'adam', 'sgd' or a callable: got {self.optimizer!r}")

    def make_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        schedules = torch.optim.lr_scheduler
        if self.schedule == "one_cycle":
            momentum = dict(cycle_momentum=False)
            return schedules.OneCycleLR(optimizer, self.lr, total_steps=max(steps, 20), pct_start=0.1, **momentum)
        if self.schedule == "cosine":
            return schedules.CosineAnnealingLR(optimizer, max(steps, 1))
        if self.schedule == "constant":
            return None
        raise ValueError(f"Plan: schedule must be 'one_cycle', 'cosine' or 'constant': got {self.schedule!r}")
