"""Euler steps on the probability-flow ODE: Karras et al. 2206.00364, algorithms 1 and 2."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops.diffusion import schedules
from dlops.diffusion._forward import ScheduleTimesteps, VariancePreserving
from dlops.diffusion._noise import Generators
from dlops.diffusion._scheduler import CLIP, PM, PN, PX, A, B, D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.functional import STEP_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack

PREDICTIONS = ("epsilon", "sample", "original_sample", "v_prediction")
MAX_GAMMA = math.sqrt(2) - 1  # 2206.00364, algorithm 2: at most doubles the variance of the noise
NO_CHURN = (0.0, 0.0, math.inf, 1.0)

logger = logging.getLogger(__name__)


class SigmaScheduler(ScheduleTimesteps, VariancePreserving):
    """What the two Euler schedulers share: variance-exploding units, x = x0 + sigma * noise, and float timesteps."""

    _float_timesteps = True
    _follows_model_dtype = True

    def _begin(self) -> None:
        """The state before `set_timesteps`: the whole training schedule."""
        self._train(floor=2.0**-24)  # near 0, so that the first sigma is not infinite
        self._reset()
        self.is_scale_input_called = False
        self._scale_tables: dict[Any, torch.Tensor] = {}
        sigmas = schedules.sigmas_of(self._alphas_cumprod)[::-1]
        self._enter(np.arange(len(sigmas), dtype=np.float64)[::-1], np.append(sigmas, 0.0))

    def _enter(self, times: np.ndarray, sigmas: np.ndarray) -> None:
        """Take `sigmas` as the ladder and tell the forward process."""
        self._sigmas = sigmas
        self.sigmas = torch.from_numpy(sigmas.copy()).to(torch.float32)
        self.timesteps = torch.from_numpy(times.copy()).to(torch.float32)
        self._index(self.timesteps)
        levels = sigmas[: len(times)]
        self._install_forward(np.stack([np.ones_like(levels), levels], axis=1))
        self._input_scales = (1 / np.sqrt(levels**2 + 1)).tolist()
        self._scale_tables.clear()

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        """Standard deviation of the initial latents: sqrt(sigma^2 + 1) where the first row is not the noisiest one."""
        largest = float(self._sigmas.max())
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return largest
        return math.sqrt(largest**2 + 1)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None, per_sample: bool = False) -> torch.Tensor:
        """sample / sqrt(sigma^2 + 1), which has unit variance. To be called before the model at every step."""
        return self._scale_input(sample, self._locate(timestep, sample, per_sample))

    def _scale_input(self, sample: torch.Tensor, row: int | torch.Tensor) -> torch.Tensor:
        self.is_scale_input_called = True
        if isinstance(row, int):
            return sample * self._input_scales[row]
        key = (sample.device, sample.dtype)
        if key not in self._scale_tables:
            scales = torch.tensor(self._input_scales, dtype=torch.float64).to(sample.dtype)
            self._scale_tables[key] = scales.to(sample.device)
        # the counter may stand past the end
        scales = self._scale_tables[key].index_select(0, row.clamp(max=len(self._input_scales) - 1))
        return sample * scales.reshape(-1, *(1,) * (sample.dim() - 1))

    def _linear_table(self, levels: np.ndarray, sigmas: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Table of Euler steps from `levels` to `targets` (the sample is at `levels`, the model saw it at `sigmas`).

        derivative = (x - x0) / level; x' = x + derivative * (target - level); x0 is linear in x and m, so x' is too.
        """
        table = np.zeros((len(levels), len(STEP_COLUMNS)))
        table[:, CLIP] = math.inf
        prediction = self.config.prediction_type
        if prediction == "epsilon":
            px, pm = np.ones_like(levels), -levels
        elif prediction == "v_prediction":  # c_skip and c_out of a VP model in VE units
            px, pm = 1 / (sigmas**2 + 1), -sigmas / np.sqrt(sigmas**2 + 1)
        else:
            px, pm = np.zeros_like(levels), np.ones_like(levels)
        ratio = np.where(levels > 0, (targets - levels) / np.where(levels > 0, levels, 1.0), 0.0)
        table[:, PX], table[:, PM] = px, pm
        table[:, A] = 1 + ratio * (1 - px)
        table[:, B] = -ratio * pm
        return table

    def _warn_unscaled(self) -> None:
        self.is_scale_input_called = True  # once is enough
        logger.warning("%s.step: the model saw an unscaled sample: call scale_model_input first", type(self).__name__)


class EulerDiscreteScheduler(SigmaScheduler):
    """Drop-in for diffusers' `EulerDiscreteScheduler`: the same arguments, attributes and `step` convention."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        owner = type(self).__name__
        schedules.one_of(owner, "prediction_type", prediction_type, PREDICTIONS)
        schedules.one_of(owner, "interpolation_type", interpolation_type, ("linear", "log_linear"))
        schedules.one_of(owner, "timestep_spacing", timestep_spacing, schedules.SPACINGS)
        schedules.one_of(owner, "timestep_type", timestep_type, ("discrete", "continuous"))
        schedules.one_of(owner, "final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        schedules.chosen_ladder(owner, self.config)
        self.use_karras_sigmas = use_karras_sigmas
        self.use_exponential_sigmas = use_exponential_sigmas
        self.use_beta_sigmas = use_beta_sigmas
        self._continuous = timestep_type == "continuous" and prediction_type == "v_prediction"
        self._begin()

    def _enter(self, times: np.ndarray, sigmas: np.ndarray) -> None:
        # EDM's c_noise, for models trained on it (2206.00364, table 1)
        super()._enter(np.log(sigmas[: len(times)]) / 4 if self._continuous else times, sigmas)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Lay out a run of `num_inference_steps` steps, over `timesteps`, or over `sigmas` (the last is where it ends).

        Raises ValueError.
        """
        owner, config, train = type(self).__name__, self.config, len(self._alphas_cumprod)
        if sum(argument is not None for argument in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError(f"{owner}.set_timesteps: exactly one of num_inference_steps, timesteps, sigmas is needed")
        name = schedules.chosen_ladder(owner, config)
        if timesteps is not None and (name or self._continuous):
            raise ValueError(f"{owner}.set_timesteps: timesteps exclude {name or 'continuous v_prediction'}")
        train_sigmas = schedules.sigmas_of(self._alphas_cumprod)
        if sigmas is not None:
            chosen = np.asarray(sigmas, dtype=np.float64)
            if chosen.ndim != 1 or len(chosen) < 2 or not (chosen >= 0).all():
                raise ValueError(f"{owner}.set_timesteps: sigmas must be two or more numbers >= 0: got {sigmas}")
            times = schedules.sigma_to_timestep(chosen[:-1], train_sigmas)
        else:
            if timesteps is not None:
                times = np.asarray(timesteps, dtype=np.float64)
                steps = len(times)
            else:
                steps = self._check_steps(num_inference_steps)
                times = schedules.spaced_timesteps(owner, config.timestep_spacing, steps, train, config.steps_offset)
            if config.interpolation_type == "linear":
                chosen = np.interp(times, np.arange(train), train_sigmas)
            else:  # one more than steps, as in diffusers: the run ends at the smallest training sigma
                chosen = schedules.exponential_sigmas(train_sigmas[-1], train_sigmas[0], steps + 1)
            if name:
                chosen = schedules.ladder(name, config, chosen, steps)
                times = schedules.sigma_to_timestep(chosen, train_sigmas)
            chosen = np.append(chosen, train_sigmas[0] if config.final_sigmas_type == "sigma_min" else 0.0)
        self.num_inference_steps = len(times)
        self._enter(times, chosen)
        self._install(self.timesteps, device, NO_CHURN)

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        churn, low, high, scale = options
        steps = len(self._times) - 1
        sigmas, targets = self._sigmas[:steps], self._sigmas[1 : steps + 1]
        gamma = np.where((sigmas >= low) & (sigmas <= high), min(churn / (len(self._sigmas) - 1), MAX_GAMMA), 0.0)
        levels = sigmas * (1 + gamma)
        table = self._linear_table(levels, sigmas, targets)
        added = scale * np.sqrt(levels**2 - sigmas**2)  # noise that lifts the sample from sigma to level
        table[:, PN], table[:, D] = table[:, PX] * added, table[:, A] * added
        return table, gamma > 0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        model_output, sample: [N, ...]. s_churn, s_tmin, s_tmax, s_noise: 2206.00364, algorithm 2. Raises ValueError.
        """
        options = (s_churn, s_tmin, s_tmax, s_noise) if s_churn > 0 else NO_CHURN
        if options != self._options:
            self._check_ready("step")
            self._select(options, self._begin_row)
        if not self.is_scale_input_called:
            self._warn_unscaled()
        return self._take(timestep, sample, model_output, generator=generator, return_dict=return_dict, **extras)
