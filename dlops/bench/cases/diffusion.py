"""Solver steps of the schedulers beside diffusers' own, and counter-based normals beside torch.randn.

The shapes: one latent image of a 512x512 model (1x4x64x64, all overhead) and a batch of pictures (16x3x256x256, all
memory). One call is one `step`; the loop around it walks through a schedule of 20 steps and starts again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch

from dlops.bench.cases._case import Candidates, Case

SMALL, LARGE = (1, 4, 64, 64), (16, 3, 256, 256)
STEPS = 20
# Betas of the latent-diffusion models, so that no step is trivial.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# class, options, tensors moved by one step (inputs + outputs, `pred_original_sample` among them), noise per step
SCHEDULERS = {
    "ddim": ("DDIMScheduler", BETAS | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, 4, False),
    "dpm++2m": ("DPMSolverMultistepScheduler", BETAS | {"algorithm_type": "dpmsolver++", "solver_order": 2}, 5, False),
    "ddpm": ("DDPMScheduler", BETAS | {"clip_sample": False}, 4, True),
    "euler": ("EulerDiscreteScheduler", BETAS, 4, False),
    "flow_match": ("FlowMatchEulerDiscreteScheduler", {}, 3, False),
}
STEP_FLOPS = 10  # five fused multiply-adds per element
NOISE_OPERATIONS = 60  # per normal: a quarter of ten Philox rounds, logarithm, square root, sine and cosine


def diffusion_cases() -> list[Case]:
    found = []
    for op, (name, options, tensors, noisy) in SCHEDULERS.items():
        for shape in (SMALL, LARGE):
            for dtype in (torch.float32, torch.bfloat16):
                if dtype is torch.bfloat16 and op != "ddim":
                    continue
                elements = math.prod(shape)
                found.append(
                    Case(
                        "diffusion",
                        op,
                        shape,
                        dtype,
                        _step(name, options, shape, dtype, noisy),
                        flops=(STEP_FLOPS + (NOISE_OPERATIONS if noisy else 0)) * elements,
                        bytes=tensors * elements * dtype.itemsize,
                        baseline="diffusers",
                        compile=op in ("ddim", "dpm++2m") and dtype is torch.float32,
                    )
                )
    for shape in (SMALL, LARGE):
        elements = math.prod(shape)
        noise = Case(
            "diffusion", "randn", shape, torch.float32, _randn(shape), NOISE_OPERATIONS * elements, 4 * elements
        )
        found.append(noise)
    return found


def _step(name: str, options: dict, shape: tuple[int, ...], dtype: torch.dtype, noisy: bool) -> Callable:
    def build(device: torch.device) -> Candidates:
        sample, output = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        ours = getattr(import_module("dlops.diffusion"), name)(**options)
        seeds = {"seeds": torch.arange(shape[0], device=device)} if noisy else {}
        mine = _Loop(ours, sample, output, **seeds)
        formula = torch.no_grad()(_formula(sample, output, name))
        if find_spec("diffusers") is None:
            return Candidates(dlops=mine, stock=formula, compilable=formula)
        theirs = getattr(import_module("diffusers"), name)(**options)
        generator = {"generator": torch.Generator(device).manual_seed(0)} if noisy else {}
        return Candidates(dlops=mine, stock=_Loop(theirs, sample, output, **generator), compilable=formula)

    return build


class _Loop:
    """One `step` per call, over and over through the schedule, as a pipeline calls it.

    The schedule itself is computed once: between rounds the scheduler gets back the attributes it had at the start.
    `scale_model_input` is no part of the step; some schedulers want to see it called before the first one.
    """

    def __init__(self, scheduler, sample: torch.Tensor, output: torch.Tensor, **noise) -> None:
        self.scheduler, self.sample, self.output, self.noise = scheduler, sample, output, noise
        scheduler.set_timesteps(STEPS, device=sample.device)
        self.timesteps = list(scheduler.timesteps)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, self.timesteps[0])
        self.start = dict(vars(scheduler))
        self.lists = [name for name, value in self.start.items() if isinstance(value, list)]
        self.at = STEPS

    def __call__(self) -> object:
        if self.at == STEPS:
            self.at = 0
            vars(self.scheduler).update(self.start)
            for name in self.lists:
                setattr(self.scheduler, name, list(self.start[name]))
        timestep = self.timesteps[self.at]
        self.at += 1
        return self.scheduler.step(self.output, timestep, self.sample, return_dict=False, **self.noise)


def _formula(sample: torch.Tensor, output: torch.Tensor, name: str) -> Callable[[], object]:
    """The bare arithmetic of a step with its coefficients taken from a table: the best case for torch.compile.

    No scheduler stands around it (no counter, no timestep, no history to keep), so ours carries more than it.
    """
    table = torch.rand(STEPS, 5, device=sample.device)
    row = torch.tensor([3], device=sample.device)
    earlier = torch.randn_like(sample) if name == "DPMSolverMultistepScheduler" else None

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        px, pm, a, b, h = table.index_select(0, row)[0].unbind()
        original = px * sample + pm * output
        previous = a * sample + b * original
        if earlier is not None:
            previous = previous + h * earlier
        return previous.to(sample.dtype), original.to(sample.dtype)

    return step


def _randn(shape: tuple[int, ...]) -> Callable:
    def build(device: torch.device) -> Candidates:
        from dlops.diffusion import randn

        seeds = torch.arange(shape[0], device=device)
        return Candidates(
            dlops=lambda: randn(shape, seeds=seeds, device=device),
            stock=lambda: torch.randn(shape, device=device),
        )

    return build
