"""DPM-Solver++, multistep: Lu et al., "DPM-Solver++", 2211.01095, on the ODE and on the SDE of the process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops.diffusion import schedules
from dlops.diffusion._forward import ScheduleTimesteps, VariancePreserving
from dlops.diffusion._noise import Generators
from dlops.diffusion._scheduler import CLIP, H1, H2, PM, PX, A, C, D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.functional import STEP_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack

ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
FEW_STEPS = 15  # below this many steps, lower_order_final makes the last two steps of lower order
SAME_LEVEL = 1e-12  # log SNRs closer than this are one ladder value, repeated (or rounded, as a ladder's end may be)
ALIASES = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}  # other solvers' configs


class DPMSolverMultistepScheduler(ScheduleTimesteps, VariancePreserving):
    """Drop-in for diffusers' `DPMSolverMultistepScheduler`: the same arguments, attributes and `step` convention.

    The noise-prediction algorithms, dpmsolver and sde-dpmsolver (deprecated there), are not offered.
    """

    _returns_x0 = False
    _float32_noise = True

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        owner = type(self).__name__
        algorithm_type, solver_type = ALIASES.get(algorithm_type, algorithm_type), ALIASES.get(solver_type, solver_type)
        self.register_to_config(algorithm_type=algorithm_type, solver_type=solver_type)
        schedules.one_of(owner, "algorithm_type", algorithm_type, ALGORITHMS)
        schedules.one_of(owner, "solver_type", solver_type, ("midpoint", "heun"))
        schedules.one_of(owner, "solver_order", solver_order, (1, 2, 3))
        schedules.one_of(owner, "prediction_type", prediction_type, PREDICTIONS)
        schedules.one_of(owner, "final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        schedules.one_of(owner, "timestep_spacing", timestep_spacing, schedules.SPACINGS)
        schedules.one_of(owner, "variance_type", variance_type, (None, "learned", "learned_range"))
        schedules.chosen_ladder(owner, self.config)
        self._train(floor=2.0**-24)  # near 0, so that the first sigma is not infinite
        self._reset()
        self._history_length = solver_order - 1
        self._flow_shift = flow_shift

        a = self._alphas_cumprod
        self.alpha_t = torch.from_numpy(np.sqrt(a)).to(torch.float32)
        self.sigma_t = torch.from_numpy(np.sqrt(1 - a)).to(torch.float32)
        self.lambda_t = torch.log(self.alpha_t) - torch.log(self.sigma_t)
        self._enter(np.arange(len(a), dtype=np.float64)[::-1].copy(), schedules.sigmas_of(a)[::-1].copy())
        # as in diffusers before set_timesteps: ascending sigmas and float timesteps
        self.sigmas = torch.from_numpy(schedules.sigmas_of(a)).to(torch.float32)
        self.timesteps = self.timesteps.to(torch.float32)

    def _enter(self, times: np.ndarray, sigmas: np.ndarray) -> None:
        """Take `sigmas` [len(times) or one more] as the ladder and tell the forward process."""
        self._sigmas = sigmas
        self.sigmas = torch.from_numpy(sigmas).to(torch.float32)
        self.timesteps = torch.from_numpy(times.astype(np.int64))
        self._index(self.timesteps)
        self._install_forward(np.stack(self._alpha_sigma(sigmas[: len(times)]), axis=1))

    def _alpha_sigma(self, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) of the process at ladder values: x = alpha * x0 + sigma * noise."""
        if self.config.use_flow_sigmas:
            return 1 - sigmas, sigmas
        alpha = 1 / np.sqrt(sigmas**2 + 1)
        return alpha, sigmas * alpha

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Lay out a run of `num_inference_steps` steps, or over `timesteps`.

        mu: exponent of the dynamic shift, with use_dynamic_shifting. Raises ValueError.
        """
        owner, config, train = type(self).__name__, self.config, len(self._alphas_cumprod)
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(f"{owner}.set_timesteps: exactly one of num_inference_steps and timesteps is needed")
        if mu is not None:
            if not config.use_dynamic_shifting or config.time_shift_type != "exponential":
                raise ValueError(f"{owner}.set_timesteps: mu needs use_dynamic_shifting, exponential time_shift_type")
            self._flow_shift = math.exp(mu)
        name = schedules.chosen_ladder(owner, config)
        if timesteps is not None:
            if name or config.use_lu_lambdas:
                raise ValueError(f"{owner}.set_timesteps: timesteps exclude {name or 'use_lu_lambdas'}")
            times = np.asarray(timesteps).astype(np.int64).astype(np.float64)
            steps = len(times)
        else:
            steps = self._check_steps(num_inference_steps)
            log_snr = np.log(self._alphas_cumprod / (1 - self._alphas_cumprod)) / 2
            clipped = int(np.searchsorted(log_snr[::-1], config.lambda_min_clipped))
            times = schedules.spaced_timesteps(
                owner, config.timestep_spacing, steps, train, config.steps_offset, train - clipped, extra=1
            ).round()

        train_sigmas = schedules.sigmas_of(self._alphas_cumprod)
        if name or config.use_lu_lambdas:
            # Lu's ladder is uniform in log SNR, hence in log sigma
            limits = config if name else {}
            sigmas = schedules.ladder(name or "use_exponential_sigmas", limits, train_sigmas[::-1], steps)
            times = schedules.sigma_to_timestep(sigmas, train_sigmas)
            if name in (None, "use_karras_sigmas") and config.beta_schedule != "squaredcos_cap_v2":
                times = times.round()
        elif config.use_flow_sigmas:
            sigmas = 1 - np.linspace(1, 1 / train, steps + 1)
            sigmas = (self._flow_shift * sigmas / (1 + (self._flow_shift - 1) * sigmas))[::-1][:-1]
            times = sigmas * train
        else:
            sigmas = np.interp(times, np.arange(train), train_sigmas)
        last = train_sigmas[0] if config.final_sigmas_type == "sigma_min" else 0.0
        self.num_inference_steps = len(times)
        self._enter(times, np.append(sigmas, last))
        self._install(self.timesteps, device)

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        config, steps = self.config, len(self._sigmas) - 1
        alpha, sigma = self._alpha_sigma(self._sigmas)
        log_snr = np.log(alpha) - np.log(sigma)
        table = np.zeros((steps, len(STEP_COLUMNS)))
        table[:, CLIP] = math.inf
        zero, one = np.zeros(steps), np.ones(steps)
        table[:, PX], table[:, PM] = {
            "epsilon": (1 / alpha[:-1], -sigma[:-1] / alpha[:-1]),
            "sample": (zero, one),
            "v_prediction": (alpha[:-1], -sigma[:-1]),
            "flow_prediction": (one, -self._sigmas[:-1]),
        }[config.prediction_type]
        for i in range(steps):
            order = min(config.solver_order, i - begin + 1 if i >= begin else 1)
            few = config.lower_order_final and steps < FEW_STEPS
            if i == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
                order = 1
            elif i == steps - 2 and few:
                order = min(order, 2)
            self._fill_row(table[i], i, order, alpha, sigma, log_snr)
        return table, np.full(steps, config.algorithm_type.startswith("sde"))

    def _fill_row(
        self, row: np.ndarray, i: int, order: int, alpha: np.ndarray, sigma: np.ndarray, log_snr: np.ndarray
    ) -> None:
        """Coefficients of the step from ladder value i to i + 1 (2211.01095, algorithm 2; appendix B for order 3).

        The update is a Taylor expansion of x0 in the log SNR: keep[0] * D0 + keep[1] * D1 + keep[2] * D2, with divided
        differences D of the denoised samples; it is then gathered by sample: this one (C), earlier ones (H1, H2).
        """
        h = log_snr[i + 1] - log_snr[i]
        if abs(h) < SAME_LEVEL:  # nothing to do
            row[A] = 1.0
            return
        stochastic = self.config.algorithm_type.startswith("sde")
        z = 2 * h if stochastic else h  # the SDE's update is the ODE's with the step doubled, plus noise
        decay = np.expm1(-z)  # e^-z - 1
        row[A] = sigma[i + 1] / sigma[i] * (np.exp(-h) if stochastic else 1.0)
        row[D] = sigma[i + 1] * np.sqrt(max(-decay, 0.0)) if stochastic else 0.0
        keep = [-decay, 0.0, 0.0]
        if (np.abs(np.diff(log_snr[i - order + 1 : i + 1])) < SAME_LEVEL).any():
            order = 1  # a repeated level has no divided difference
        if order == 2 and self.config.solver_type == "midpoint":
            keep[1] = -0.5 * decay
        elif order > 1:
            keep[1] = decay / z + 1
        if order == 3:
            # The expansion has +0.5 in both cases. diffusers has -0.5 for the SDE, and results are to equal its own.
            keep[2] = -(decay + z) / z**2 + (-0.5 if stochastic else 0.5)
        keep = [alpha[i + 1] * k for k in keep]
        row[C] = keep[0]
        if order == 1:
            return
        r0 = (log_snr[i] - log_snr[i - 1]) / h
        first, second = keep[1] / r0, 0.0  # weights of (m0 - m1) and (m1 - m2)
        if order == 3:
            r1 = (log_snr[i - 1] - log_snr[i - 2]) / h
            bend = (keep[1] * r0 + keep[2]) / (r0 + r1)  # D1 and D2 both contain (D1_0 - D1_1) / (r0 + r1)
            first, second = (keep[1] + bend) / r0, -bend / r1
        row[C] += first
        row[H1] = second - first
        row[H2] = -second

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        sample: [N, C, ...]; model_output: the same shape, or with a learned variance more channels, of which the
        first C are used. Orders above 1 use the denoised samples of the last steps of this run. Raises ValueError.
        """
        if self.config.variance_type is not None and self.config.prediction_type == "epsilon":
            model_output = model_output[:, : sample.shape[1]]
            uncond = extras.get("uncond")
            if uncond is not None:
                extras["uncond"] = uncond[:, : sample.shape[1]]
        return self._take(
            timestep, sample, model_output, noise=variance_noise, generator=generator, return_dict=return_dict, **extras
        )
