"""Our sampling loop beside diffusers' loop, and our kernels beside torch's: the same network, noise and settings, in turns
within one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlops import backend, diffusion, explain
from dlops.courses.generative.f6_diffusion import MAIN
from dlops.models import UNet

Solve = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (uncond, cond, timestep, sample) -> next sample


@dataclass(frozen=True)
class StepTime:
    """Medians over rounds, in microseconds per step. The solver's share includes classifier-free guidance."""

    sampler: str
    ours_solver: float
    ours_step: float
    theirs_solver: float
    theirs_step: float


@dataclass(frozen=True)
class NetworkTime:
    """Medians over rounds, in microseconds per forward pass; which kernels its ops take, and how often."""

    ours: float
    theirs: float
    kernels: dict[str, int]


@torch.inference_mode()
def compare_kernels(network: UNet, batch: int, rounds: int = 20) -> NetworkTime:
    """One forward pass on `batch` digits, with our kernels where they are the faster ones, and with torch's everywhere."""
    noise, timestep = torch.randn(batch, 1, 8, 8), torch.tensor(500)
    labels = torch.arange(batch) % network.null_class
    seconds: dict[str, list[float]] = {"auto": [], "torch": []}
    for turn in range(rounds + 2):
        for name, samples in seconds.items():
            with backend(name):
                start = time.perf_counter()
                network(noise, timestep, labels)
                if turn > 1:  # the first turns warm up
                    samples.append(time.perf_counter() - start)
    kernels: dict[str, int] = {}
    for plan in explain(network, noise, timestep, labels):
        name = f"{plan.op} ({plan.variant or plan.uses})"
        kernels[name] = kernels.get(name, 0) + 1
    ours, theirs = (1e6 * statistics.median(samples) for samples in seconds.values())
    return NetworkTime(ours, theirs, kernels)


def compare_loops(
    network: UNet,
    samplers: dict[str, tuple[str, dict[str, Any]]],
    guidance: float,
    steps: int,
    batch: int,
    rounds: int = 5,
) -> list[StepTime] | None:
    """Time per step of a loop of `steps` steps on `batch` digits, for each sampler: name -> (class, extra settings).

    Returns None where diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError:
        return None
    noise = diffusion.randn((batch, 1, 8, 8), seeds=torch.arange(batch))
    labels = torch.arange(batch) % network.null_class
    rows = []
    for name, (scheduler_class, settings) in samplers.items():
        seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        ours = getattr(diffusion, scheduler_class)(**MAIN.settings, **settings)
        theirs = getattr(diffusers, scheduler_class)(**MAIN.settings, **settings)
        loops = {"ours": (ours, _ours(ours, guidance, batch)), "theirs": (theirs, _theirs(theirs, guidance))}
        for turn in range(rounds + 1):
            for side, (scheduler, solve) in loops.items():
                measured = _loop(network, scheduler, solve, noise, labels, steps)
                if turn:  # the first turn warms up
                    seconds[side].append(measured)
        rows.append(StepTime(name, *_medians(seconds["ours"]), *_medians(seconds["theirs"])))
    return rows


def _medians(seconds: list[tuple[float, float]]) -> tuple[float, float]:
    solver, step = zip(*seconds, strict=True)
    return 1e6 * statistics.median(solver), 1e6 * statistics.median(step)


def _ours(scheduler: Any, guidance: float, batch: int) -> Solve:
    seeds = torch.arange(batch)

    def solve(uncond: Tensor, cond: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        step = scheduler.step(cond, timestep, sample, uncond=uncond, guidance=guidance, seeds=seeds, return_dict=False)
        return step[0]

    return solve


def _theirs(scheduler: Any, guidance: float) -> Solve:
    def solve(uncond: Tensor, cond: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        return scheduler.step(uncond + guidance * (cond - uncond), timestep, sample, return_dict=False)[0]

    return solve


@torch.inference_mode()
def _loop(
    network: UNet, scheduler: Any, solve: Solve, noise: Tensor, labels: Tensor, steps: int
) -> tuple[float, float]:
    """Seconds per step: (solver alone, whole step)."""
    scheduler.set_timesteps(steps)
    both = torch.cat([torch.full_like(labels, network.null_class), labels])
    sample, solver = noise, 0.0
    start = time.perf_counter()
    for timestep in scheduler.timesteps:
        uncond, cond = network(torch.cat([sample, sample]), timestep, both).chunk(2)
        before = time.perf_counter()
        sample = solve(uncond, cond, timestep, sample)
        solver += time.perf_counter() - before
    return solver / steps, (time.perf_counter() - start) / steps
