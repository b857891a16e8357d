"""Denoising diffusion: what a network learns to undo, and how new images are drawn with it.

Ho, Jain, Abbeel 2020 ("Denoising diffusion probabilistic models"): algorithm 1 is `Process.loss`, algorithm 2 is `draw`
with a scheduler of `dlops.diffusion`. An image x0 is seen at noise level t as

    x_t = alpha_t * x0 + sigma_t * noise                       (eq. 4; alpha^2 + sigma^2 = 1, or alpha + sigma = 1 for a flow)

and the network, given x_t, t and the class, predicts one of four things that all say the same:

    epsilon       noise                                        (Ho et al. 2020, eq. 14)
    sample        x0                                           (Salimans & Ho 2022, "Progressive distillation", section 4)
    v_prediction  alpha_t * noise - sigma_t * x0               (the same, appendix D)
    flow          noise - x0                                   (Lipman et al. 2023, "Flow matching"; Esser et al. 2024, eq. 13)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dlops import diffusion
from dlops.courses.data.digits import Digits

TIMESTEPS = 1000  # of training
SIDE = 8  # of a digit
FLOW = "flow"  # its levels are not a schedule of betas
PREDICTIONS = ("epsilon", "sample", "v_prediction", FLOW)


@dataclass(frozen=True)
class Process:
    """What is done to an image, and what the network says about the result.

    Args:
        prediction: one of PREDICTIONS.
        schedule: of the betas, "linear" (Ho et al. 2020, section 4) or "squaredcos_cap_v2" (Nichol & Dhariwal 2021, eq. 17);
            a flow has none. On small images linear betas are pure noise long before the last timestep.
        drop_label: share of training images whose class is hidden: they teach the unconditional prediction that guidance
            needs (Ho & Salimans 2022).

    Raises:
        ValueError: there is no such prediction.
    """

    prediction: str = "v_prediction"
    schedule: str = "squaredcos_cap_v2"
    drop_label: float = 0.1

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"Process: prediction must be one of {', '.join(PREDICTIONS)}: got {self.prediction!r}")

    @property
    def settings(self) -> dict[str, Any]:
        """What every scheduler that draws with this network must be told."""
        if self.prediction == FLOW:
            return {"num_train_timesteps": TIMESTEPS}
        return {
            "num_train_timesteps": TIMESTEPS, "beta_schedule": self.schedule, "prediction_type": self.prediction,
        }  # fmt: skip

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Mean square error of the prediction on images [N, C, H, W] at a random timestep each."""
        n, device = len(images), images.device
        timesteps = torch.randint(TIMESTEPS, (n,)).to(device)
        noise = torch.randn(images.shape).to(device)
        hidden = (torch.rand(n) < self.drop_label).to(device)
        noised, timesteps, target = self.example(images, noise, timesteps)
        return mse_loss(network(noised, timesteps, labels.masked_fill(hidden, network.null_class)), target)

    def example(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noised images, the timesteps as the network is told them, what it should answer); timesteps [N] of 0..999."""
        if self.prediction == FLOW:
            sigma = ((timesteps + 1).to(images.dtype) / TIMESTEPS).reshape(-1, *[1] * (images.dim() - 1))
            return (1 - sigma) * images + sigma * noise, timesteps + 1, noise - images
        forward = diffusion.DDPMScheduler(**self.settings)
        noised = forward.add_noise(images, noise, timesteps)
        if self.prediction == "v_prediction":
            return noised, timesteps, forward.get_velocity(images, noise, timesteps)
        return noised, timesteps, noise if self.prediction == "epsilon" else images


@dataclass(frozen=True)
class Sampler:
    """One way to draw: a scheduler of `dlops.diffusion`, its settings beyond those of the process, the steps."""

    name: str
    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 50

    def scheduler_for(self, process: Process) -> diffusion.Scheduler:
        return getattr(diffusion, self.scheduler)(**process.settings, **self.settings)


def draw(
    network: nn.Module, process: Process, sampler: Sampler, labels: Tensor, seeds: Tensor, guidance: float, **how: Any
) -> Digits:
    """One image [1, 8, 8] per label [N], clipped to -1..1. Image i starts from the noise of seeds[i], whatever the sampler.

    `how` goes to `dlops.diffusion.sample`: callback, progress.
    """
    images = diffusion.sample(
        network,
        (len(labels), 1, SIDE, SIDE),
        sampler.scheduler_for(process),
        sampler.steps,
        seeds=seeds,
        guidance=guidance,
        model_kwargs={"labels": labels},
        uncond_kwargs={"labels": torch.full_like(labels, network.null_class)},
        **how,
    )
    return Digits(images.clamp(-1, 1), labels)
