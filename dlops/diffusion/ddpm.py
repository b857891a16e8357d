"""DDPM: Ho et al., "Denoising diffusion probabilistic models", 2006.11239."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops import functional
from dlops.diffusion import schedules
from dlops.diffusion._forward import TrainingTimesteps
from dlops.diffusion._noise import Generators, torch_randn
from dlops.diffusion._scheduler import CLIP, PM, PX, A, C, D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.diffusion.ddim import PREDICTIONS, denoised_coefficients
from dlops.functional import STEP_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack

LEARNED = ("learned", "learned_range")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED)
MIN_VARIANCE = 1e-20  # the posterior variance of the last step is 0 and its logarithm is taken


class DDPMScheduler(TrainingTimesteps):
    """Drop-in for diffusers' `DDPMScheduler`: the same arguments, attributes and `step` convention.

    One difference: `fixed_large_log` gives sqrt(beta), as in Glide; diffusers takes the root of a negative number.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        schedules.one_of(type(self).__name__, "prediction_type", prediction_type, PREDICTIONS)
        schedules.one_of(type(self).__name__, "variance_type", variance_type, VARIANCES)
        schedules.one_of(type(self).__name__, "timestep_spacing", timestep_spacing, schedules.SPACINGS)
        self._train("laplace", "sigmoid")
        self.one = torch.tensor(1.0)
        self.variance_type = variance_type
        self.custom_timesteps = False
        self._reset()
        self._log_variance_table: torch.Tensor | None = None
        self.timesteps = torch.arange(len(self._alphas_cumprod) - 1, -1, -1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Lay out a run, either of `num_inference_steps` steps or over descending `timesteps`. Raises ValueError."""
        owner, config, train = type(self).__name__, self.config, len(self._alphas_cumprod)
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(f"{owner}.set_timesteps: exactly one of num_inference_steps and timesteps is needed")
        self.custom_timesteps = timesteps is not None
        if timesteps is not None:
            times = np.asarray(timesteps)
            if (np.diff(times) >= 0).any():
                raise ValueError(f"{owner}.set_timesteps: timesteps must descend: got {list(timesteps)}")
        else:
            steps = self._check_steps(num_inference_steps, train)
            self.num_inference_steps = steps
            times = schedules.spaced_timesteps(owner, config.timestep_spacing, steps, train, config.steps_offset)
        self._log_variance_table = None
        self._install(self._training_timesteps(times), device)

    def previous_timestep(self, timestep: int) -> int:
        """The timestep that a step from `timestep` arrives at; -1 after the last."""
        if self._times is None:
            return timestep - 1
        following = self._times[self.index_for_timestep(timestep) + 1]
        return -1 if following is None else int(following)

    def _posterior(self) -> tuple[np.ndarray, ...]:
        """(times, alphas_cumprod at each and at the next one, posterior variance, beta) of the schedule's rows."""
        times = np.array(self._times[:-1], dtype=np.int64)
        at = self._alphas_cumprod[times]
        after = np.append(at[1:], 1.0)
        beta = 1 - at / after
        return times, at, after, np.maximum((1 - after) / (1 - at) * beta, MIN_VARIANCE), beta  # eq. 7

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        times, at, after, variance, beta = self._posterior()
        table = np.zeros((len(times), len(STEP_COLUMNS)))
        table[:, PX], table[:, PM] = denoised_coefficients(config.prediction_type, at)
        table[:, CLIP] = config.clip_sample_range if config.clip_sample and not config.thresholding else math.inf
        table[:, C] = np.sqrt(after) * beta / (1 - at)  # eq. 7
        table[:, A] = np.sqrt(1 - beta) * (1 - after) / (1 - at)
        draws = times > 0
        if self.variance_type in LEARNED:
            table[:, D] = draws  # the noise comes scaled by the model
        else:
            table[:, D] = np.where(draws, np.sqrt(beta if "large" in self.variance_type else variance), 0.0)
        return table, draws

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        sample: [N, C, ...]; model_output: the same shape, or [N, 2C, ...] with a learned variance, whose second half
        is the variance. Without `set_timesteps` the schedule is the training one. Raises ValueError.
        """
        self._check_tensors(sample, model_output)
        if self._times is None:
            self._install(self.timesteps, sample.device)
        if self.variance_type not in LEARNED:
            return self._take(timestep, sample, model_output, generator=generator, return_dict=return_dict, **extras)
        if sample.dim() < 2 or model_output.shape != (len(sample), 2 * sample.shape[1], *sample.shape[2:]):
            raise ValueError(
                "DDPMScheduler.step: a learned variance needs model_output [N, 2C, ...] for a sample [N, C, ...]:"
                f" got {tuple(model_output.shape)} for {tuple(sample.shape)}"
            )
        channels = sample.shape[1]
        uncond = extras.get("uncond")
        if uncond is not None and uncond.shape[1] == 2 * channels:
            extras["uncond"] = uncond[:, :channels]
        given, per_sample = extras.pop("row", None), extras.pop("per_sample", False)
        row = self._locate(timestep, sample, per_sample) if given is None else given
        noise = self._learned_noise(row, sample, model_output[:, channels:], generator, extras.pop("seeds", None))
        model_output = model_output[:, :channels]
        extras["row"] = row  # type: ignore[typeddict-item]
        return self._take(timestep, sample, model_output, noise=noise, return_dict=return_dict, **extras)

    def _learned_noise(
        self,
        row: int | torch.Tensor,
        sample: torch.Tensor,
        predicted: torch.Tensor,
        generator: Generators,
        seeds: Any,
    ) -> torch.Tensor | None:
        """Noise times the standard deviation that the model predicts [N, C, ...] (Nichol & Dhariwal, eq. 15)."""
        if isinstance(row, int) and not self._draws[row]:
            return None
        if seeds is None:
            noise = torch_randn(predicted.shape, generator, predicted.device, predicted.dtype)
        else:
            # the step of a zero sample with a zero prediction is its noise
            zero = torch.zeros_like(predicted, memory_format=torch.contiguous_format)
            seeds = self._check_seeds(seeds, sample, None, generator)
            noise, _ = functional.diffusion_step(zero, zero, self._table_for(zero), row, seeds=seeds, return_x0=False)
        if self.variance_type == "learned":
            return predicted.sqrt() * noise
        if self._log_variance_table is None or self._log_variance_table.device != sample.device:
            _, _, _, variance, beta = self._posterior()
            table = torch.from_numpy(np.log(np.stack([variance, beta], axis=1)))
            self._log_variance_table = table.to(predicted.dtype).to(sample.device)
        if isinstance(row, int):
            bounds = self._log_variance_table[row : row + 1]
        else:
            bounds = self._log_variance_table.index_select(0, row)
        low, high = (bound.reshape(-1, *(1,) * (sample.dim() - 1)) for bound in bounds.unbind(1))
        fraction = (predicted + 1) / 2
        return torch.exp(0.5 * (fraction * high + (1 - fraction) * low)) * noise
