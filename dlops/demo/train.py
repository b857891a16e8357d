"""Training of the denoiser: velocity prediction on noised digits, with a moving average of the weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from dlops.courses.data.digits import CLASSES, Digits
from dlops.diffusion import DDPMScheduler
from dlops.models import UNet

# What the network learns to undo; every sampler of the demo is built from these settings. The cosine schedule because
# linear betas turn a small image into pure noise long before the last timestep (Nichol & Dhariwal 2021, section 3.2).
NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class Recipe:
    """How the network is built and trained."""

    steps: int = 2400
    batch: int = 32
    learning_rate: float = 2e-3  # peak; rises over the first tenth of the steps, then falls to 0 along a cosine
    average: float = 0.998  # decay of the moving average of the weights (Ho et al. 2020, section 4)
    drop_label: float = 0.1  # share of examples without class: the unconditional model (Ho & Salimans 2022)
    network: dict[str, Any] = field(default_factory=lambda: {"channels": 32, "multipliers": (1, 2)})


def train(digits: Digits, recipe: Recipe, seed: int) -> tuple[UNet, list[float]]:
    """The network with averaged weights, in eval mode, and the loss of every step.

    The same seed, machine and number of threads give the same weights, bit for bit.
    """
    from tqdm import trange

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # initialisation draws from the global generator
        torch.manual_seed(seed)
        # channels last: the fastest layout for convolutions with few channels on a CPU
        network = UNet(classes=CLASSES, **recipe.network).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    parameters, averages = list(network.parameters()), list(averaged.parameters())

    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    scheduler = DDPMScheduler(**NOISE)
    batches = _batches(len(digits), recipe.batch, generator)
    losses: list[float] = []
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two looks of the bar: few lines in a log file
    with trange(recipe.steps, desc="training", unit="step", mininterval=interval) as progress:
        for step in progress:
            chosen = next(batches)
            loss = _loss(network, scheduler, digits.images[chosen], digits.labels[chosen], recipe.drop_label, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            # early weights are worth forgetting fast: the average starts short and lengthens with the steps
            decay = min(recipe.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - decay)
            losses.append(loss.item())
            progress.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
    return averaged, losses


def _loss(
    network: UNet,
    scheduler: DDPMScheduler,
    images: Tensor,
    labels: Tensor,
    drop_label: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean square error of the predicted velocity (Salimans & Ho 2022, appendix D) at a random timestep per image."""
    n = len(images)
    timesteps = torch.randint(NOISE["num_train_timesteps"], (n,), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    unlabelled = torch.rand(n, generator=generator) < drop_label
    labels = labels.masked_fill(unlabelled, network.null_class)
    predicted = network(scheduler.add_noise(images, noise, timesteps), timesteps, labels)
    return mse_loss(predicted, scheduler.get_velocity(images, noise, timesteps))


def _batches(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices [batch] for ever: every image once per epoch in a new order; an incomplete last batch is left out."""
    batch = min(batch, size)
    while True:
        order = torch.randperm(size, generator=generator)
        yield from order[: size // batch * batch].split(batch)
