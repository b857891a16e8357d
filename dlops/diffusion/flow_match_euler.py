"""Euler steps on a rectified flow: Esser et al., "Scaling rectified flow transformers", 2403.03206."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlops import _backend
from dlops._explain import make_plan
from dlops.diffusion import schedules
from dlops.diffusion._forward import ScheduleTimesteps
from dlops.diffusion._noise import Generators, torch_randn
from dlops.diffusion._scheduler import CLIP, PM, PX, A, B, D
from dlops.diffusion._types import SchedulerOutput, StepExtras
from dlops.functional import STEP_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FlowMatchEulerDiscreteScheduler(ScheduleTimesteps):
    """Drop-in for diffusers' `FlowMatchEulerDiscreteScheduler`: the same arguments, attributes and `step` convention.

    x = (1 - sigma) * x0 + sigma * noise; the model predicts noise - x0.
    """

    _float_timesteps = True
    _returns_x0 = False
    _float32_noise = True
    _follows_model_dtype = True
    _sizes_of: torch.Tensor | None = None  # the table that _sizes was read from

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(num_train_timesteps, (int, np.integer)) or num_train_timesteps < 1:
            raise ValueError(f"{owner}: num_train_timesteps must be a positive int: got {num_train_timesteps!r}")
        if not shift > 0:
            raise ValueError(f"{owner}: shift must be above 0: got {shift}")
        schedules.one_of(owner, "time_shift_type", time_shift_type, ("exponential", "linear"))
        schedules.chosen_ladder(owner, self.config)
        self._reset()
        self._shift = shift
        sigmas = np.arange(num_train_timesteps, 0, -1) / num_train_timesteps
        if not use_dynamic_shifting:
            sigmas = self._shifted(sigmas)
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])
        self._enter(sigmas * num_train_timesteps, sigmas)

    @property
    def shift(self) -> float:
        """The shift of the schedule towards noise (2403.03206, eq. 23)."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Change `shift` from the next `set_timesteps` on."""
        self._shift = shift

    def _shifted(self, sigmas: np.ndarray) -> np.ndarray:
        return self._shift * sigmas / (1 + (self._shift - 1) * sigmas)

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """Resolution-dependent shift of t: s / (s + (1/t - 1)^sigma) with s = exp(mu), or mu if linear."""
        strength = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return strength / (strength + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """t stretched away from 1 so that it ends at `shift_terminal`."""
        return 1 - (1 - t) * (1 - self.config.shift_terminal) / (1 - t[-1])

    def _enter(self, times: np.ndarray, sigmas: np.ndarray) -> None:
        self._sigmas = sigmas
        self.sigmas = torch.from_numpy(sigmas).to(torch.float32)
        self.timesteps = torch.from_numpy(times).to(torch.float32)
        self._index(self.timesteps)
        levels = sigmas[: len(times)]
        self._install_forward(np.stack([1 - levels, levels], axis=1))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Lay out a run of `num_inference_steps` steps, or over `sigmas` (then shifted) or `timesteps`, or both.

        mu: strength of the resolution-dependent shift, needed with use_dynamic_shifting. Raises ValueError.
        """
        owner, config, train = type(self).__name__, self.config, self.config.num_train_timesteps
        if config.use_dynamic_shifting and mu is None:
            raise ValueError(f"{owner}.set_timesteps: mu is needed with use_dynamic_shifting")
        lengths = {len(values) for values in (sigmas, timesteps) if values is not None}
        if num_inference_steps is not None:
            lengths.add(self._check_steps(num_inference_steps))
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"{owner}.set_timesteps: num_inference_steps, sigmas and timesteps must give one positive number of"
                f" steps: got {sorted(lengths) or 'none'}"
            )
        steps = lengths.pop()
        given = None if timesteps is None else np.asarray(timesteps, dtype=np.float64)
        if sigmas is not None:
            levels = np.asarray(sigmas, dtype=np.float64)
        elif given is not None:
            levels = given / train
        else:
            levels = np.linspace(self.sigma_max, self.sigma_min, steps)
        if config.use_dynamic_shifting and mu is not None:
            levels = self.time_shift(mu, 1.0, levels)
        else:
            levels = self._shifted(levels)
        if config.shift_terminal:
            levels = self.stretch_shift_to_terminal(levels)
        name = schedules.chosen_ladder(owner, config)
        if name:
            levels = schedules.ladder(name, config, levels, steps)
        if config.invert_sigmas:
            levels, given = 1 - levels, None
        self.num_inference_steps = steps
        self._enter(levels * train if given is None else given, np.append(levels, 1.0 if config.invert_sigmas else 0.0))
        self.sigmas = self.sigmas.to(device)  # per-token sigmas are compared there
        self._install(self.timesteps, device)

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor | None = None, **extras: Any
    ) -> torch.Tensor:
        """(1 - sigma) * sample + sigma * noise; `add_noise` under the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep, **extras)

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        sigmas, following = self._sigmas[:-1], self._sigmas[1:]
        table = np.zeros((len(sigmas), len(STEP_COLUMNS)))
        table[:, CLIP] = math.inf
        table[:, PX], table[:, PM] = 1.0, -sigmas
        if self.config.stochastic_sampling:  # back to noise level `following` from x0, with fresh noise
            table[:, A], table[:, B], table[:, D] = 1 - following, -(1 - following) * sigmas, following
        else:
            table[:, A], table[:, B] = 1.0, following - sigmas
        return table, np.full(len(sigmas), bool(self.config.stochastic_sampling))

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
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
        **extras: Unpack[StepExtras],
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step to the next timestep. `extras` are the keyword arguments that `dlops.diffusion` explains.

        model_output, sample: [N, ...]. per_token_timesteps [N, tokens]: each token of sample [N, tokens, channels]
        steps from its own timestep to the next one of the schedule (composed of torch's operations; float32 result).
        The `s_*` arguments have no effect, as in diffusers. Raises ValueError.
        """
        if per_token_timesteps is None:
            if not extras and self._is_one_addition(sample, model_output):
                row = self._locate(timestep, sample)
                if type(row) is int:
                    prev = torch.add(sample, model_output, alpha=self._sizes[row])
                    self._advance(row)
                    return SchedulerOutput(prev) if return_dict else (prev,)
            return self._take(timestep, sample, model_output, generator=generator, return_dict=return_dict, **extras)
        if extras:
            raise ValueError(f"{type(self).__name__}.step: per_token_timesteps exclude {', '.join(extras)}")
        row = self._locate(timestep, sample)
        prev = self._step_per_token(model_output, sample.to(torch.float32), generator, per_token_timesteps)
        self._advance(row)
        return SchedulerOutput(prev) if return_dict else (prev,)

    def _is_one_addition(self, sample: Any, model_output: Any) -> bool:
        """Whether torch's own sample + size * model_output takes the step: one pass and one launch, as our kernel's, and
        less to call. `dlops.explain` says so; backend("dlops") takes the kernel."""
        if (
            type(sample) is not torch.Tensor
            or type(model_output) is not torch.Tensor
            or sample.dtype not in (torch.float32, torch.float64)  # in a half type torch would round the size first
            or model_output.dtype is not sample.dtype
            or sample.shape != model_output.shape
            or not sample.dim()
            or self._times is None
            or self._noisy
            or torch.compiler.is_compiling()
            or _backend.backend.current() == "dlops"
        ):
            return False
        if self._sizes_of is not self._host_table:
            self._sizes_of, self._sizes = self._host_table, self._host_table[:, B].tolist()

        def plan(use: bool, reason: str) -> _backend.Plan:
            n = sample.numel()
            return make_plan(
                "diffusion_step", use, reason, device=sample.device, flops=2 * n, bytes=3 * n * sample.element_size()
            )

        slower = "this step is one torch.add: the same single pass, and less to call"
        return not _backend.choose("diffusion_step", None, plan, slower)

    def _step_per_token(
        self, model_output: torch.Tensor, sample: torch.Tensor, generator: Generators, timesteps: torch.Tensor
    ) -> torch.Tensor:
        if sample.dim() != 3 or timesteps.shape != sample.shape[:2]:
            raise ValueError(
                f"{type(self).__name__}.step: per_token_timesteps must be [N, tokens] for a sample"
                f" [N, tokens, channels]: got {tuple(timesteps.shape)} for {tuple(sample.shape)}"
            )
        current = (timesteps / self.config.num_train_timesteps)[..., None]  # [N, tokens, 1]
        ladder = self.sigmas.to(sample.device)  # [steps + 1]
        below = torch.where(ladder < current - 1e-6, ladder, 0.0)  # [N, tokens, steps + 1]
        following = below.amax(dim=-1, keepdim=True)
        if not self.config.stochastic_sampling:
            # diffusers steps by current - following here, which for a schedule that descends has the other sign
            return sample + (current - following) * model_output
        noise = torch_randn(sample.shape, generator, sample.device, sample.dtype)
        return (1 - following) * (sample - current * model_output) + following * noise
