"""DDIM: Song et al., "Denoising diffusion implicit models", 2010.02502."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops.diffusion import schedules
from dlops.diffusion._forward import TrainingTimesteps
from dlops.diffusion._noise import Generators
from dlops.diffusion._scheduler import CLIP, PM, PX, A, B, C, D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.functional import STEP_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack

PREDICTIONS = ("epsilon", "sample", "v_prediction")

# At zero terminal SNR the noise prediction says nothing about x0, which is 0/0. This floor on sqrt(alphas_cumprod)
# keeps the sign of sample - noise, which is what is left of it once the result is clipped.
ROOT_ALPHA_FLOOR = 2.0**-60


def denoised_coefficients(prediction: str, alphas_cumprod: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(px, pm) with x0 = px * sample + pm * model_output."""
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    if prediction == "epsilon":  # 2010.02502, eq. 9
        alpha = np.maximum(alpha, ROOT_ALPHA_FLOOR)
        return 1 / alpha, -sigma / alpha
    if prediction == "sample":
        return np.zeros_like(alpha), np.ones_like(alpha)
    return alpha, -sigma  # v = alpha * noise - sigma * x0, Salimans & Ho 2202.00512


class DDIMScheduler(TrainingTimesteps):
    """Drop-in for diffusers' `DDIMScheduler`: the same arguments, attributes and `step` convention."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        schedules.one_of(type(self).__name__, "prediction_type", prediction_type, PREDICTIONS)
        schedules.one_of(type(self).__name__, "timestep_spacing", timestep_spacing, schedules.SPACINGS)
        self._train()
        self._final_alpha = 1.0 if set_alpha_to_one else float(self._alphas_cumprod[0])
        self.final_alpha_cumprod = torch.tensor(self._final_alpha)
        self._reset()
        self.timesteps = torch.arange(len(self._alphas_cumprod) - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps and upload its table to `device`. Raises ValueError."""
        config, train = self.config, len(self._alphas_cumprod)
        steps = self._check_steps(num_inference_steps, train)
        times = schedules.spaced_timesteps(
            type(self).__name__, config.timestep_spacing, steps, train, config.steps_offset
        )
        self.num_inference_steps = steps
        self._stride = train // steps  # training timesteps per step, whatever the spacing, as in diffusers
        self._install(self._training_timesteps(times), device, (0.0, False))

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        eta, clipped = options
        config = self.config
        times = np.array(self._times[:-1], dtype=np.int64)
        earlier = times - self._stride
        at = self._alphas_cumprod[times]
        after = np.where(earlier >= 0, self._alphas_cumprod[np.maximum(earlier, 0)], self._final_alpha)
        variance = (1 - after) / (1 - at) * (1 - at / after)
        std = eta * np.sqrt(np.maximum(variance, 0))  # eq. 16
        towards_noise = 1 - after - std**2
        if (towards_noise < -1e-12).any():
            raise ValueError(f"DDIMScheduler.step: eta must keep the noise within its level, as 0 to 1 does: got {eta}")
        direction = np.sqrt(np.maximum(towards_noise, 0))

        alpha, sigma = np.sqrt(at), np.sqrt(1 - at)
        table = np.zeros((len(times), len(STEP_COLUMNS)))
        table[:, PX], table[:, PM] = denoised_coefficients(config.prediction_type, at)
        table[:, CLIP] = config.clip_sample_range if config.clip_sample and not config.thresholding else math.inf
        table[:, C] = np.sqrt(after)  # eq. 12: sqrt(after) * x0 + direction * noise prediction + std * noise
        if clipped:  # the noise prediction that agrees with the clipped x0
            table[:, A] = direction / sigma
            table[:, C] -= direction * alpha / sigma
        elif config.prediction_type == "epsilon":
            table[:, B] = direction
        elif config.prediction_type == "sample":
            table[:, A], table[:, B] = direction / sigma, -direction * alpha / sigma
        else:
            table[:, A], table[:, B] = direction * sigma, direction * alpha
        table[:, D] = std
        return table, np.full(len(times), eta > 0)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        model_output, sample: [N, ...]. eta: 0 is deterministic, 1 as noisy as DDPM. use_clipped_model_output: take the
        noise prediction from the clipped x0. Raises ValueError.
        """
        options = (eta, bool(use_clipped_model_output))
        if options != self._options:
            self._choose(options)
        if variance_noise is not None and generator is not None and eta > 0:
            raise ValueError("DDIMScheduler.step: generator and variance_noise exclude each other: got both")
        return self._take(
            timestep, sample, model_output, noise=variance_noise, generator=generator, return_dict=return_dict, **extras
        )

    def _choose(self, options: tuple[float, bool]) -> None:
        self._check_ready("step")
        if not options[0] >= 0:
            raise ValueError(f"DDIMScheduler.step: eta must be at least 0: got {options[0]}")
        self._select(options, self._begin_row)
