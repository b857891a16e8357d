"""What theory says of diffusion whatever the network has learned: measured, so that a recipe can check it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dlops import diffusion
from dlops.courses.generative.denoising import FLOW, PREDICTIONS, TIMESTEPS, Process, Sampler

SCHEDULES = ("linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class Gaussian:
    """Data whose best denoiser is known: normal with this mean and standard deviation."""

    mean: float = 0.7
    std: float = 0.6

    def answer(self, prediction: str, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """What a perfect network says of x = alpha * x0 + sigma * noise."""
        x0 = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)
        noise = (x - alpha * x0) / sigma
        return {
            "epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0, FLOW: noise - x0,
        }[prediction]  # fmt: skip

    def drawn(self, process: Process, sampler: Sampler) -> tuple[float, float]:
        """Mean and standard deviation of what `sampler` draws from this data, in float64 and without drawing many.

        Every step is affine, x' = a x + b + d noise, so two numbers describe all samples. A solver with a history is
        deterministic here: the fates of 0 and 1 say all. Of any other the step of three probes gives a, b and d.
        """
        scheduler = sampler.scheduler_for(process)
        scheduler.set_timesteps(sampler.steps)
        looks_back = isinstance(scheduler, diffusion.DPMSolverMultistepScheduler)
        probes = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        x, mean, variance = probes * float(scheduler.init_noise_sigma), 0.0, float(scheduler.init_noise_sigma) ** 2
        one = probes.new_ones(len(scheduler.timesteps), 1)
        alphas = scheduler.add_noise(one, 0 * one, scheduler.timesteps).flatten().tolist()
        sigmas = scheduler.add_noise(0 * one, one, scheduler.timesteps).flatten().tolist()
        generator, twin = (torch.Generator().manual_seed(0) for _ in range(2))  # the twin tells us what was drawn
        for timestep, alpha, sigma in zip(scheduler.timesteps, alphas, sigmas):
            x = x if looks_back else probes
            scale = scheduler.scale_model_input(one[:1], timestep).item()
            answer = self.answer(process.prediction, scale * x, scale * alpha, scale * sigma)
            x = scheduler.step(answer, timestep, x, generator=generator, return_dict=False)[0]
            if not looks_back:
                noise = torch.randn(3, 1, dtype=torch.float64, generator=twin)
                d = (x[0] - x[1]) / (noise[0] - noise[1])
                b = x[0] - d * noise[0]
                a = x[2] - b - d * noise[2]
                mean, variance = (a * mean + b).item(), (a**2 * variance + d**2).item()
        return (x[0].item(), (x[2] - x[0]).abs().item()) if looks_back else (mean, math.sqrt(variance))


def gaussian_gap(process: Process, sampler: Sampler, data: Gaussian = Gaussian()) -> float:
    """How far the mean or standard deviation of what is drawn in the limit of small steps is from that of the data, in
    standard deviations. The limit: Richardson's, from 50, 100 and 200 steps (errors in 1/steps and 1/steps^2 cancel)."""
    runs = [data.drawn(process, replace(sampler, steps=steps)) for steps in (50, 100, 200)]
    coarse, middle, fine = torch.tensor(runs, dtype=torch.float64)
    first, second = 2 * middle - coarse, 2 * fine - middle
    limit = (4 * second - first) / 3
    return (limit - torch.tensor([data.mean, data.std], dtype=torch.float64)).abs().max().item() / data.std


def conversion_gap() -> float:
    """Largest difference, in float64 and over every timestep, between where one step goes that hears the noise, the clean
    image or the velocity, and between the clean images that it infers: they say the same thing."""
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, TIMESTEPS, 1, 2, 2, dtype=torch.float64, generator=generator)
    timesteps, gap = torch.arange(TIMESTEPS), 0.0
    for schedule in SCHEDULES:
        after = []
        for prediction in PREDICTIONS[:3]:
            process = Process(prediction, schedule)
            scheduler = diffusion.DDIMScheduler(**process.settings, clip_sample=False)
            scheduler.set_timesteps(TIMESTEPS)
            noised, told, target = process.example(images, noise, timesteps)
            found = scheduler.step(target, told, noised)
            gap = max(gap, (found.pred_original_sample - images).abs().max().item())
            # the noise is the same all along the path: one step later there is just less of it
            exact = torch.cat([images[:1], process.example(images[1:], noise[1:], timesteps[:-1])[0]])
            gap = max(gap, (found.prev_sample - exact).abs().max().item())
            after.append(found.prev_sample)
        gap = max(gap, *((other - after[0]).abs().max().item() for other in after[1:]))
    process = Process(FLOW)
    noised, told, target = process.example(images, noise, timesteps)
    scheduler = diffusion.FlowMatchEulerDiscreteScheduler(**process.settings)
    scheduler.set_timesteps(sigmas=(told.flip(0).double() / TIMESTEPS).tolist())
    found = scheduler.step(target, scheduler.timesteps.flip(0), noised).prev_sample
    exact = torch.cat([images[:1], process.example(images[1:], noise[1:], timesteps[:-1])[0]])
    return max(gap, (found - exact).abs().max().item())


@torch.no_grad()
def round_trip(network: nn.Module, process: Process, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """images [N, C, H, W] turned into noise by DDIM run backwards and drawn again by DDIM (Song et al. 2021, section 5.4).

    A step of DDIM with eta = 0 goes from y to x = A y + B network(y). Backwards, y = (x - B network(x)) / A: the network
    reads the end of the step that is known, so the round trip closes as the steps shrink.
    """
    scheduler = diffusion.DDIMScheduler(**process.settings, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps, device=images.device)
    one, zero = images.new_ones(1, 1), images.new_zeros(1, 1)

    def says(y: Tensor, timestep: Tensor) -> Tensor:
        return network(y, timestep.expand(len(y)), labels)

    x = images
    for timestep in scheduler.timesteps.flip(0):
        a = scheduler.step(zero, timestep, one).prev_sample
        b = scheduler.step(one, timestep, zero).prev_sample
        x = (x - b.item() * says(x, timestep)) / a.item()
    for timestep in scheduler.timesteps:
        x = scheduler.step(says(x, timestep), timestep, x).prev_sample
    return x
