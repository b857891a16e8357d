"""What all schedulers share: the coefficient table, the step counter, the noise, and the one op that takes a step.

`set_timesteps` works out every coefficient of the run in float64 and uploads one float32 table [steps, 11]
(`STEP_COLUMNS`). A step then picks a row and calls `dlops.functional.diffusion_step` once. The row is counted on the
host; a tensor counter on the device is kept beside it (as a view, without a launch), because a compiled step must not
unroll a Python counter: it reads the tensor and leaves the host behind, which catches up at the next eager step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlops import functional
from dlops._eager import eager
from dlops.diffusion import schedules
from dlops.diffusion._config import Configured
from dlops.diffusion._noise import Generators, torch_randn
from dlops.diffusion._types import SchedulerOutput, Seeds
from dlops.functional.diffusion import STEP_COLUMNS, as_seeds

MAX_TABLES = 8  # kept per schedule: one for every choice of eta, churn or starting row
PX, PM, PN, CLIP, A, B, C, H1, H2, H3, D = range(len(STEP_COLUMNS))


class Scheduler(Configured):
    """Base of the schedulers. A subclass fills the table (`_coefficients`) and gives `step` its signature."""

    order = 1  # model calls per step
    init_noise_sigma: float = 1.0  # standard deviation of the initial latents

    _stateful = False  # the counter decides although the host timestep is known, as earlier steps matter
    _float_timesteps = False  # an int would be an index by mistake
    _returns_x0 = True
    _float32_noise = False  # noise drawn in float32 whatever the dtype of the model's output
    _follows_model_dtype = False  # mixed dtypes: the result has the model output's dtype instead of the promoted one

    def _reset(self) -> None:
        """The state before `set_timesteps`; called by every constructor."""
        self.num_inference_steps: int | None = None
        self._times: Any = None  # the timesteps and, at the end, None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._history: tuple[torch.Tensor, ...] = ()
        self._history_length = 0
        self._seeds: tuple[Any, torch.Tensor] | None = None
        self._options: Any = None
        self._starts: dict[float, int] = {}

    # ---- the schedule ----

    def _check_steps(self, steps: Any, most: int | None = None) -> int:
        if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"{type(self).__name__}: num_inference_steps must be a positive int: got {steps!r}")
        if most is not None and steps > most:
            raise ValueError(
                f"{type(self).__name__}: num_inference_steps must be at most num_train_timesteps: got {steps},"
                f" allowed 1 to {most}"
            )
        return int(steps)

    def _install(self, timesteps: torch.Tensor, device: torch.device | str | None, options: Any = ()) -> None:
        """Start a schedule: `timesteps` [steps] on the host as callers will see them, coefficients for `options`."""
        self._threshold_ratio, self._threshold_max = schedules.x0_bounds(type(self).__name__, self.config)
        self.timesteps = timesteps.to(device)
        self._times = self._index(timesteps)
        self._times.append(None)  # equals no timestep: the counter at its end
        self._step_index = self._begin_index = None
        self._history = ()
        self._tables: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
        self._device = self.timesteps.device
        # the options of the last run are likely those of the next one
        self._select(options if self._options is None else self._options, 0)

    def _index(self, timesteps: torch.Tensor) -> list[float]:
        """Note the row where a run from each timestep starts: the second of a repeated one, as in diffusers."""
        times = timesteps.tolist()
        seen: dict[float, int] = {}
        self._starts = {}
        for row, t in enumerate(times):
            seen[t] = seen.get(t, 0) + 1
            if seen[t] <= 2:
                self._starts[t] = row
        return times

    def _coefficients(self, options: Any, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """Table [steps, 11] in float64 and bool [steps]: does the row draw noise. The run starts at row `begin`."""
        raise NotImplementedError

    @eager
    def _select(self, options: Any, begin: int) -> None:
        """Make the table for these step options current."""
        if (options, begin) not in self._tables:
            if len(self._tables) == MAX_TABLES:
                self._tables.clear()
            with np.errstate(all="ignore"):  # infinite log SNR at the ends is expected
                self._tables[options, begin] = self._coefficients(options, begin)
        table, draws = self._tables[options, begin]
        self._options, self._begin_row = options, begin
        self._host_table = torch.from_numpy(table)
        self._draws = draws.tolist()
        self._noisy = bool(draws.any())
        self._upload(self._device)

    @eager
    def _upload(self, device: torch.device) -> None:
        self._device = device
        self._table = self._host_table.to(torch.float32).to(device)
        self._table64: torch.Tensor | None = None
        self._schedule = self.timesteps.to(device)
        self._row_views = torch.arange(len(self._times), device=device).split(1)  # int64 [1] each
        self._row = self._row_views[self._counter()]

    def _counter(self) -> int:
        index = self._begin_index if self._step_index is None else self._step_index
        return index or 0

    def _table_for(self, sample: torch.Tensor) -> torch.Tensor:
        if sample.device != self._device:
            self._upload(sample.device)
        if sample.dtype is not torch.float64:
            return self._table
        if self._table64 is None:
            self._table64 = self._host_table.to(self._device)
        return self._table64

    # ---- the counter ----

    @property
    def step_index(self) -> int | None:
        """Row of the next step; None before the first. Reads the device counter only if compiled steps moved it."""
        if self._times is not None and self._row is not self._row_views[self._counter()]:
            self._recount()
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Row of the first step, if `set_begin_index` set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this row (image-to-image). Call after `set_timesteps`. Raises ValueError."""
        self._check_ready("set_begin_index")
        steps = len(self._draws)
        if not isinstance(begin_index, (int, np.integer)) or not 0 <= begin_index < steps:
            raise ValueError(
                f"{type(self).__name__}.set_begin_index: begin_index must be an int from 0 to {steps - 1}:"
                f" got {begin_index!r}"
            )
        self._begin_index = int(begin_index)
        if self._step_index is None:
            self._begin_at(self._begin_index)

    def _begin_at(self, index: int) -> None:
        self._history = ()
        if self._history_length and index != self._begin_row:
            self._select(self._options, index)  # the first steps of a run have less history to use
        self._row = self._row_views[index]

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Row at which a run that starts at `timestep` starts. Raises ValueError if it is not in the schedule."""
        value = timestep.item() if isinstance(timestep, torch.Tensor) else timestep
        try:
            return self._starts[value]
        except (KeyError, TypeError):
            times = ", ".join(f"{t:g}" for t in list(self._starts)[:3])
            raise ValueError(
                f"{type(self).__name__}: timestep must be one of scheduler.timesteps ({times}, ...): got {timestep!r}"
            ) from None

    def _check_ready(self, method: str) -> None:
        if self._times is None:
            raise ValueError(f"{type(self).__name__}.{method}: set_timesteps must be called first")

    @eager
    def _recount(self) -> int:
        """The host counter after compiled steps: waits for the device."""
        self._step_index = min(int(self._row), len(self._draws))
        self._row = self._row_views[self._step_index]
        return self._step_index

    def _locate(self, timestep: Any, sample: torch.Tensor, per_sample: bool = False) -> int | torch.Tensor:
        """Row of this step: an int, or under compile the counter [1], or one row per sample [N].

        Nothing on an accelerator is read: there, and under compile, the counter decides. Host values are checked.
        """
        if self._times is None:
            self._check_ready("step")
        if torch.compiler.is_compiling():
            if isinstance(timestep, torch.Tensor) and timestep.dim() and (per_sample or timestep.shape[0] != 1):
                return self._locate_each(timestep, sample)
            return self._row
        value = timestep
        if isinstance(timestep, torch.Tensor):
            if self._float_timesteps and not timestep.is_floating_point():
                self._reject_index(timestep)
            if timestep.dim() and (per_sample or timestep.shape[0] != 1):
                return self._locate_each(timestep, sample)
            # a subclass of Tensor is a fake or a traced one: it has no value to read
            value = timestep.item() if type(timestep) is torch.Tensor and timestep.device.type == "cpu" else None
        elif timestep is None:
            self.index_for_timestep(timestep)  # refuses it: None stands for a value that is not read
        elif self._float_timesteps and type(timestep) is int:
            self._reject_index(timestep)

        index = self._step_index
        if self._row is not self._row_views[self._counter()]:
            index = self._recount()
        elif index is None:
            index = self._begin_index
            if index is None:
                index = 0 if value is None else self.index_for_timestep(value)
            self._begin_at(index)
        if value is None:
            if index == len(self._draws):
                index = self._at_end()
        elif value != self._times[index]:
            other = self.index_for_timestep(value)
            if not self._stateful:
                index = other
            elif index == len(self._draws):
                index = self._at_end()
        self._step_index = index
        return index

    def _at_end(self) -> int:
        if self._stateful:
            raise ValueError(
                f"{type(self).__name__}.step: all {len(self._draws)} steps are done; call set_timesteps for another run"
            )
        return 0

    def _reject_index(self, timestep: Any) -> None:
        raise ValueError(
            f"{type(self).__name__}: timestep must be one of scheduler.timesteps, which are floats, not an index:"
            f" got {timestep!r}"
        )

    def _locate_each(self, timesteps: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Schedule rows [N] of per-sample timesteps [N]; found on their device, or checked on the host."""
        if self._history_length:
            raise ValueError(
                f"{type(self).__name__}.step: per-sample timesteps need solver_order=1, as a higher order looks back"
                f" at earlier steps of the same run: got solver_order={self._history_length + 1}"
            )
        if timesteps.dim() != 1 or timesteps.shape[0] != sample.shape[0]:
            raise ValueError(
                f"{type(self).__name__}.step: timestep must be a scalar or of shape ({sample.shape[0]},), one per"
                f" sample: got shape {tuple(timesteps.shape)}"
            )
        if sample.device != self._device:
            self._upload(sample.device)
        if not torch.compiler.is_compiling() and type(timesteps) is torch.Tensor and timesteps.device.type == "cpu":
            rows = [self.index_for_timestep(t) for t in timesteps.tolist()]
            return torch.tensor(rows, dtype=torch.int64).to(sample.device)
        found = self._schedule[None, :] == timesteps.to(sample.device)[:, None]  # [N, steps]
        return found.int().argmax(dim=1)

    # ---- the step ----

    def _take(
        self,
        timestep: Any,
        sample: torch.Tensor,
        model_output: torch.Tensor,
        *,
        row: int | torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
        per_sample: bool = False,
        seeds: Seeds = None,
        uncond: torch.Tensor | None = None,
        guidance: float = 1.0,
        guidance_rescale: float = 0.0,
        out: torch.Tensor | None = None,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Find the row, draw noise if it needs some, one op, advance the counter."""
        self._check_tensors(sample, model_output)
        if uncond is None and (guidance != 1.0 or guidance_rescale):
            raise ValueError(f"{type(self).__name__}.step: guidance and guidance_rescale need uncond")
        if row is None:
            row = self._locate(timestep, sample, per_sample)
        table = self._table_for(sample)
        if seeds is not None:
            seeds = self._check_seeds(seeds, sample, noise, generator)
            if not self._noisy:
                seeds = None
        elif not self._noisy:
            noise = None
        elif noise is None and (self._draws[row] if type(row) is int else True):
            dtype = torch.float32 if self._float32_noise else model_output.dtype
            noise = torch_randn(model_output.shape, generator, model_output.device, dtype)

        history = self._history
        if self._history_length and torch.compiler.is_compiling():
            # zeros keep the shapes the same at every step: one graph. Their coefficients are 0, so the op skips them.
            history += (torch.zeros_like(sample),) * (self._history_length - len(history))
        wants_x0 = self._returns_x0 or self._history_length > 0
        options = {
            "guidance": guidance,
            "rescale": guidance_rescale,
            "seeds": seeds,
            "threshold_ratio": self._threshold_ratio,
            "threshold_max": self._threshold_max,
            "return_x0": wants_x0,
        }
        if model_output.dtype is not sample.dtype or (noise is not None and noise.dtype is not sample.dtype):
            prev, x0 = self._mixed(row, sample, model_output, table, history, noise, uncond, out, options)
        else:
            prev, x0 = functional.diffusion_step(
                sample, model_output, table, row, uncond=uncond, history=history, noise=noise, out=out, **options
            )

        self._advance(row)
        if self._history_length:
            self._history = (x0, *history[: self._history_length - 1])
        if return_dict:
            return SchedulerOutput(prev, x0)
        return (prev, x0) if self._returns_x0 else (prev,)

    def _check_tensors(self, sample: Any, model_output: Any) -> None:
        for name, value in (("sample", sample), ("model_output", model_output)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{type(self).__name__}.step: {name} must be a tensor: got {type(value).__name__}")
            if not value.is_floating_point() or not value.dim():
                raise ValueError(
                    f"{type(self).__name__}.step: {name} must be floating point of shape [N, ...]: got {value.dtype} of"
                    f" shape {tuple(value.shape)}"
                )

    def _advance(self, row: int | torch.Tensor) -> None:
        if type(row) is int:
            self._step_index = row + 1
            self._row = self._row_views[row + 1]
        elif row is self._row:
            self._row = row + 1  # out of place: a compiled step must not write to its input

    def _mixed(self, row, sample, model_output, table, history, noise, uncond, out, options):
        """A step whose inputs differ in dtype: computed in the widest, rounded once at the end."""
        wide = torch.promote_types(sample.dtype, model_output.dtype)
        result = model_output.dtype if self._follows_model_dtype else wide
        if noise is not None:
            wide = torch.promote_types(wide, noise.dtype)
            noise = noise.to(device=sample.device, dtype=wide)
        prev, x0 = functional.diffusion_step(
            sample.to(wide),
            model_output.to(wide),
            table,
            row,
            uncond=None if uncond is None else uncond.to(wide),
            history=tuple(earlier.to(wide) for earlier in history),
            noise=noise,
            **options,
        )
        prev = prev.to(result) if out is None else out.copy_(prev)
        return prev, None if x0 is None else x0.to(result)

    def _check_seeds(
        self, seeds: Any, sample: torch.Tensor, noise: torch.Tensor | None, generator: Generators
    ) -> torch.Tensor:
        name = type(self).__name__
        if noise is not None or generator is not None:
            raise ValueError(f"{name}.step: seeds exclude generator and variance_noise: got both")
        if isinstance(seeds, torch.Tensor):
            seeds = as_seeds(f"{name}.step", seeds, sample.shape[0], sample.device)
            return seeds if seeds.device == sample.device else seeds.to(sample.device)
        # a list is uploaded once per run, not once per step
        if self._seeds is None or self._seeds[0] != (list(seeds), sample.device):
            uploaded = as_seeds(f"{name}.step", seeds, sample.shape[0], sample.device)
            self._seeds = ((list(seeds), sample.device), uploaded)
        return self._seeds[1]

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Lay out a run and upload its table; every scheduler has its own arguments."""
        raise NotImplementedError

    def step(self, *args: Any, **kwargs: Any) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Take one step; every scheduler has its own arguments."""
        raise NotImplementedError

    def _scale_input(self, sample: torch.Tensor, row: int | torch.Tensor) -> torch.Tensor:
        return sample

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the model expects it: unchanged, unless the scheduler works in variance-exploding units."""
        return sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps
