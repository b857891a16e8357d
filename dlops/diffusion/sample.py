"""The sampling loop: initial latents, the model, guidance, a scheduler; with progress, a callback and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from dlops import functional
from dlops.diffusion._noise import Generators, torch_randn
from dlops.diffusion._scheduler import Scheduler
from dlops.diffusion._types import Seeds

WARM_UP_STEPS = 3  # before a capture: libraries allocate their workspaces and pick their algorithms


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    shape: Sequence[int],
    scheduler: Scheduler,
    steps: int | None,
    *,
    seeds: Seeds = None,
    generator: Generators = None,
    latents: torch.Tensor | None = None,
    guidance: float | None = None,
    guidance_rescale: float = 0.0,
    model_kwargs: Mapping[str, Any] | None = None,
    uncond_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    callback: Callable[[int, float, torch.Tensor], None] | None = None,
    cuda_graph: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **step_kwargs: Any,
) -> torch.Tensor:
    """Draw samples of `shape` [N, ...] by denoising from pure noise.

    Args:
        model: called as `model(x, t, **model_kwargs)` with x [N, ...] and t [N]; returns a tensor like x, or an object
            with it as `.sample` or as its first entry. Its train or eval mode is left as it is.
        scheduler: one of `dlops.diffusion`. steps: for `set_timesteps`; None if that was called already, then the run
            starts at its begin index.
        seeds: int64 [N] or list: every sample depends on its own seed only, as far as the scheduler goes (the model's
            arithmetic may depend on the batch). Without, torch's noise, from `generator` (one, or one per sample).
        latents: [N, ...] of unit variance instead of drawn ones.
        guidance: classifier-free guidance scale. The model runs once per step on [2N, ...]: conditional with
            `model_kwargs`, unconditional with `uncond_kwargs`. guidance_rescale: 0 to 1, Lin et al. 2305.08891, 3.4.
        progress: a tqdm bar, if tqdm is installed and the output is a terminal.
        callback: `callback(step_index, timestep, latents)` after every step; the latents may be reused by the next one.
        cuda_graph: capture one whole step, model included, and replay it (CUDA only; the model must be capturable:
            static shapes, nothing read back). A per-run `generator` must be a CUDA one.
        device, dtype: of the latents; by default those of the model's parameters.
        step_kwargs: for `scheduler.step`, such as eta.

    Returns:
        The samples [N, ...].

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: cuda_graph without a CUDA device.
    """
    if not isinstance(scheduler, Scheduler):
        raise TypeError(
            f"sample: scheduler must be one of dlops.diffusion (see its from_config): got {type(scheduler).__name__}"
        )
    if guidance is not None and uncond_kwargs is None:
        raise ValueError("sample: guidance needs uncond_kwargs, the model's arguments without the condition")
    if seeds is not None and generator is not None:
        raise ValueError("sample: seeds and generator exclude each other: got both")
    place, dtype = _placement(model, device, dtype)
    shape = tuple(shape)
    if cuda_graph and place.type != "cuda":
        raise RuntimeError(f"sample: cuda_graph needs a CUDA device: got {place}")
    if steps is not None:
        scheduler.set_timesteps(steps, device=place)
    elif scheduler.num_inference_steps is None:
        raise ValueError("sample: steps is None, but set_timesteps was not called")

    if latents is not None:
        if tuple(latents.shape) != shape:
            raise ValueError(f"sample: latents must have shape {shape}: got {tuple(latents.shape)}")
        x = latents.to(device=place, dtype=dtype)
    elif seeds is not None:
        x = functional.randn(shape, seeds=seeds, step=-1, dtype=dtype, device=place)
    else:
        x = torch_randn(shape, generator, place, dtype)
    x = x * scheduler.init_noise_sigma

    options = dict(step_kwargs)
    if seeds is not None:
        options["seeds"] = torch.as_tensor(seeds, dtype=torch.int64, device=place)
    elif generator is not None:
        options["generator"] = generator
    if guidance is not None:
        options.update(guidance=guidance, guidance_rescale=guidance_rescale)
    denoise = _Denoiser(model, shape[0], model_kwargs or {}, uncond_kwargs if guidance is not None else None)

    begin = scheduler.begin_index or 0
    times = scheduler.timesteps.tolist()  # one read, before the loop
    rows = range(begin, len(times))
    bar = _progress(rows) if progress else rows
    if cuda_graph:
        step = _GraphStep(scheduler, denoise, x, begin, options)
        replay = step.capture(generator)
        for i in bar:
            replay()
            if callback is not None:
                callback(i, times[i], step.x)
        return step.x
    for i in bar:
        scaled = scheduler.scale_model_input(x, times[i])
        cond, uncond = denoise(scaled, scheduler.timesteps[i])
        if uncond is not None:
            options["uncond"] = uncond
        # in place: x is ours, and nothing else holds it
        x = scheduler.step(cond, times[i], x, return_dict=False, out=x, **options)[0]
        if callback is not None:
            callback(i, times[i], x)
    return x


class _Denoiser:
    """The model as (conditional, unconditional or None) output; both from one call on the doubled batch."""

    def __init__(
        self, model: Callable[..., Any], samples: int, cond: Mapping[str, Any], uncond: Mapping[str, Any] | None
    ) -> None:
        self.model, self.samples, self.guided = model, samples, uncond is not None
        self.kwargs = dict(cond) if uncond is None else _joined(cond, uncond, samples)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.guided:
            x = torch.cat([x, x])
        output = self.model(x, t.expand(x.shape[0]), **self.kwargs)
        if not isinstance(output, torch.Tensor):
            output = output.sample if hasattr(output, "sample") else output[0]
        if not self.guided:
            return output, None
        return output[: self.samples], output[self.samples :]


def _joined(cond: Mapping[str, Any], uncond: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Model arguments for the doubled batch: per-sample tensors are concatenated, all others must agree."""
    if set(cond) != set(uncond):
        raise ValueError(
            f"sample: model_kwargs and uncond_kwargs must have the same keys: got {sorted(cond)} and {sorted(uncond)}"
        )
    joined = {}
    for name, value in cond.items():
        other = uncond[name]
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            if value.shape != other.shape or value.dim() == 0 or value.shape[0] != samples:
                raise ValueError(
                    f"sample: {name} must be [{samples}, ...] in model_kwargs and uncond_kwargs:"
                    f" got {tuple(value.shape)} and {tuple(other.shape)}"
                )
            joined[name] = torch.cat([value, other])
        elif value is other or (not isinstance(value, torch.Tensor) and value == other):
            joined[name] = value
        else:
            raise ValueError(f"sample: {name} must be a tensor [{samples}, ...] in both, as uncond_kwargs has another")
    return joined


class _GraphStep:
    """One whole step on static buffers, driven by a counter on the device, so that it can be captured and replayed."""

    def __init__(
        self, scheduler: Scheduler, denoise: _Denoiser, x: torch.Tensor, begin: int, options: dict[str, Any]
    ) -> None:
        self.scheduler, self.denoise, self.options = scheduler, denoise, options
        self.x, self.initial, self.begin = x.clone(), x, begin
        self.row = torch.full((1,), begin, dtype=torch.int64, device=x.device)
        scheduler.set_begin_index(begin)
        self.history = tuple(torch.zeros_like(x) for _ in range(scheduler._history_length))
        scheduler._history = self.history

    def __call__(self) -> None:
        scheduler = self.scheduler
        t = scheduler.timesteps.index_select(0, self.row)
        cond, uncond = self.denoise(scheduler._scale_input(self.x, self.row), t)
        extra = {} if uncond is None else {"uncond": uncond}
        scheduler.step(cond, t, self.x, return_dict=False, out=self.x, row=self.row, **extra, **self.options)
        for buffer, value in reversed(list(zip(self.history, scheduler._history))):  # the oldest first: they shift
            buffer.copy_(value)
        scheduler._history = self.history
        self.row += 1

    def reset(self) -> None:
        self.x.copy_(self.initial)
        self.row.fill_(self.begin)
        for buffer in self.history:
            buffer.zero_()

    def capture(self, generator: Generators) -> Callable[[], None]:
        """Warm up, capture, reset; returns what replays the step."""
        state = torch.cuda.get_rng_state(self.x.device) if generator is None else None
        stream = torch.cuda.Stream(self.x.device)
        stream.wait_stream(torch.cuda.current_stream(self.x.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self()
                self.row.fill_(self.begin)
        torch.cuda.current_stream(self.x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        generators = [generator] if isinstance(generator, torch.Generator) else generator or []
        for own in generators:
            if own.device.type != "cuda":
                raise ValueError(f"sample: cuda_graph needs a CUDA generator: got one on {own.device}")
            graph.register_generator_state(own)
        with torch.cuda.graph(graph):
            self()
        self.reset()
        if state is not None:
            torch.cuda.set_rng_state(state, self.x.device)  # the warm-up's noise is not part of the run
        return graph.replay


def _placement(
    model: Callable[..., Any], device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the latents: as asked for, or the model's, or the defaults."""
    first = next(iter(model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    if device is None:
        device = torch.device("cpu") if first is None else first.device
    if dtype is None:
        dtype = first.dtype if first is not None and first.is_floating_point() else torch.get_default_dtype()
    return torch.device(device), dtype


def _progress(rows: Iterable[int]) -> Iterable[int]:
    try:
        from tqdm import tqdm
    except ImportError:
        return rows
    return tqdm(rows, desc="sampling", disable=None)
