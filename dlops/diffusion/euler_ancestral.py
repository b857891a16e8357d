"""Euler steps with ancestral noise: Song et al. 2011.13456, section 3.3, in the units of Karras et al. 2206.00364."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops.diffusion import schedules
from dlops.diffusion._noise import Generators
from dlops.diffusion._scheduler import D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.diffusion.euler import SigmaScheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack

PREDICTIONS = ("epsilon", "v_prediction")


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Drop-in for diffusers' `EulerAncestralDiscreteScheduler`: same arguments, attributes and `step` convention."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        schedules.one_of(type(self).__name__, "prediction_type", prediction_type, PREDICTIONS)
        schedules.one_of(type(self).__name__, "timestep_spacing", timestep_spacing, schedules.SPACINGS)
        self._begin()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps and upload its table to `device`. Raises ValueError."""
        owner, config, train = type(self).__name__, self.config, len(self._alphas_cumprod)
        steps = self._check_steps(num_inference_steps)
        times = schedules.spaced_timesteps(owner, config.timestep_spacing, steps, train, config.steps_offset)
        sigmas = np.interp(times, np.arange(train), schedules.sigmas_of(self._alphas_cumprod))
        self.num_inference_steps = steps
        self._enter(times, np.append(sigmas, 0.0))
        self._install(self.timesteps, device)

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        sigmas, following = self._sigmas[:-1], self._sigmas[1:]
        up = np.sqrt(following**2 * (sigmas**2 - following**2) / sigmas**2)  # noise put back in
        down = np.sqrt(following**2 - up**2)  # where the deterministic step goes first
        table = self._linear_table(sigmas, sigmas, down)
        table[:, D] = up
        return table, np.ones(len(sigmas), dtype=bool)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        model_output, sample: [N, ...]. Raises ValueError.
        """
        if not self.is_scale_input_called:
            self._warn_unscaled()
        return self._take(timestep, sample, model_output, generator=generator, return_dict=return_dict, **extras)
