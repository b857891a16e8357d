"""The forward process, x_t = scale * x_0 + sigma * noise, for the two ways in which schedulers name a noise level."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlops import functional
from dlops.diffusion import schedules
from dlops.diffusion._scheduler import Scheduler
from dlops.diffusion._types import Seeds


class VariancePreserving(Scheduler):
    """Schedulers trained on betas: keeps alphas_cumprod in float64 beside the public float32 tensors."""

    def _train(self, *more_schedules: str, floor: float | None = None) -> None:
        """Set betas, alphas and alphas_cumprod from the config. floor: alphas_cumprod of a zero terminal SNR."""
        config, owner = self.config, type(self).__name__
        betas = schedules.make_betas(
            owner,
            config.beta_schedule,
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.trained_betas,
            ("linear", "scaled_linear", "squaredcos_cap_v2", *more_schedules),
        )
        if config.rescale_betas_zero_snr:
            betas = schedules.rescale_zero_terminal_snr(betas)
            if not np.isfinite(betas).all():
                raise ValueError(f"{owner}: rescale_betas_zero_snr needs betas whose signal-to-noise ratio falls")
        self._alphas_cumprod = np.cumprod(1 - betas)
        if config.rescale_betas_zero_snr and floor is not None:
            self._alphas_cumprod[-1] = floor
        self.betas = torch.from_numpy(betas).to(torch.float32)
        self.alphas = torch.from_numpy(1 - betas).to(torch.float32)
        self.alphas_cumprod = torch.from_numpy(self._alphas_cumprod).to(torch.float32)
        self._forward_tables: dict[Any, torch.Tensor] = {}

    def _training_rows(
        self, name: str, timesteps: int | torch.Tensor, sample: torch.Tensor, table: np.ndarray
    ) -> tuple[torch.Tensor, int | torch.Tensor]:
        """(table on the sample's device, row or rows) of training timesteps."""
        key = (name, sample.device, sample.dtype is torch.float64)
        if key not in self._forward_tables:
            dtype = torch.float64 if sample.dtype is torch.float64 else torch.float32
            self._forward_tables[key] = torch.from_numpy(table).to(dtype).to(sample.device)
        if isinstance(timesteps, torch.Tensor):
            if timesteps.is_floating_point() or timesteps.is_complex() or timesteps.dtype is torch.bool:
                raise TypeError(f"{name}: timesteps must be integers: got {timesteps.dtype}")
            # a device value cannot be checked without waiting for it; a subclass of Tensor has none
            on_host = type(timesteps) is torch.Tensor and timesteps.device.type == "cpu"
            known = timesteps.reshape(-1).tolist() if on_host and not torch.compiler.is_compiling() else []
            row: int | torch.Tensor = timesteps.reshape(-1).to(device=sample.device, dtype=torch.int64)
        else:
            known, row = [timesteps], timesteps
        for t in known:
            if not isinstance(t, (int, np.integer)) or not 0 <= t < len(table):
                raise ValueError(f"{name}: timesteps must be ints from 0 to {len(table) - 1}: got {t!r}")
        return self._forward_tables[key], row

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """v = sqrt(a) * noise - sqrt(1 - a) * sample, a = alphas_cumprod[timesteps] (Salimans & Ho 2202.00512, app. D).

        sample, noise: [N, ...]; timesteps: int, or integer tensor [1] or [N]. Raises ValueError, TypeError.
        """
        a = self._alphas_cumprod
        table = np.stack([-np.sqrt(1 - a), np.sqrt(a)], axis=1)
        table, row = self._training_rows("get_velocity", timesteps, sample, table)
        return functional.add_noise(sample, noise.to(sample.dtype), table, row)


class TrainingTimesteps(VariancePreserving):
    """Noise levels named by training timestep: DDPM, DDIM."""

    def _training_timesteps(self, times: Any) -> torch.Tensor:
        """Timesteps as int64. Raises ValueError for one outside the training range (a large steps_offset)."""
        times = np.round(np.asarray(times)).astype(np.int64)
        train = len(self._alphas_cumprod)
        if times.ndim != 1 or not times.size or times.min() < 0 or times.max() >= train:
            found = f"{times.min()} to {times.max()}" if times.size else "none"
            raise ValueError(
                f"{type(self).__name__}.set_timesteps: timesteps must lie in 0 to {train - 1}: got {found};"
                " is steps_offset too large?"
            )
        return torch.from_numpy(times)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor | None,
        timesteps: int | torch.Tensor,
        *,
        seeds: Seeds = None,
        step: int = -1,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """sqrt(a) * original_samples + sqrt(1 - a) * noise, a = alphas_cumprod[timesteps] (Ho et al., eq. 4).

        original_samples, noise: [N, ...]; timesteps: int, or integer tensor [1] or [N]. With noise=None, normals keyed
        by (seeds, step). The table is float32 for half samples too, so small noise is not lost. Raises ValueError.
        """
        a = self._alphas_cumprod
        table = np.stack([np.sqrt(a), np.sqrt(1 - a)], axis=1)
        table, row = self._training_rows("add_noise", timesteps, original_samples, table)
        noise = None if noise is None else noise.to(original_samples.dtype)
        return functional.add_noise(original_samples, noise, table, row, seeds=seeds, step=step, out=out)


class ScheduleTimesteps(Scheduler):
    """Noise levels named by an entry of `timesteps`: the solvers that work on a ladder of sigmas."""

    _stateful = True

    def _install_forward(self, table: np.ndarray) -> None:
        """table [len(timesteps), 2]: (scale, sigma) of each row, float64."""
        # a repeated timestep names the level that a run starting at it starts from
        times = self.timesteps.tolist()
        self._forward_host = table[[self._starts[t] for t in times]]
        self._forward_tables: dict[Any, torch.Tensor] = {}

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor | None,
        timesteps: torch.Tensor,
        *,
        seeds: Seeds = None,
        step: int = -1,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sample at the noise level of `timesteps`, or of the current step once `set_begin_index` was called.

        original_samples, noise: [N, ...]; timesteps [1] or [N], entries of `scheduler.timesteps`. With noise=None,
        normals keyed by (seeds, step). Host timesteps are checked; device ones are looked up there. Raises ValueError.
        """
        sample = original_samples
        key = (sample.device, sample.dtype is torch.float64)
        if key not in self._forward_tables:
            dtype = torch.float64 if sample.dtype is torch.float64 else torch.float32
            self._forward_tables[key] = torch.from_numpy(self._forward_host).to(dtype).to(sample.device)
        row: int | torch.Tensor
        if self._begin_index is not None:
            row = self._begin_index if self._step_index is None else min(self._step_index, len(self._forward_host) - 1)
        else:
            timesteps = torch.as_tensor(timesteps).reshape(-1)
            if type(timesteps) is torch.Tensor and timesteps.device.type == "cpu" and not torch.compiler.is_compiling():
                row = torch.tensor([self.index_for_timestep(t) for t in timesteps.tolist()]).to(sample.device)
            else:
                levels = self.timesteps.to(sample.device)
                row = (levels[None, :] == timesteps.to(sample.device)[:, None]).int().argmax(dim=1)
        noise = None if noise is None else noise.to(sample.dtype)
        return functional.add_noise(sample, noise, self._forward_tables[key], row, seeds=seeds, step=step, out=out)
