"""F6. Denoising diffusion draws handwritten digits, with every sampler of `dlops.diffusion` and four kinds of prediction.

The other predictions and linear betas are trained for 12 of the 40 epochs, at the rate and the average that suit the first: what
is told of them shows that they work, not how good they can be.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.data.digits import CLASSES, Digits, load_digits
from dlops.courses.generative.denoising import FLOW, Process, Sampler, draw
from dlops.courses.generative.exactness import conversion_gap, gaussian_gap, round_trip
from dlops.courses.judge import ACCURACY_GOAL, DISTANCE_GOAL, Judge
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.diffusion.unet import UNet

if TYPE_CHECKING:
    from dlops.courses.session import Fitted, Session

NETWORK: dict[str, Any] = {"channels": 16, "multipliers": (1, 2)}
GUIDANCE = 1.5  # Ho & Salimans 2022
# The average of the weights (Ho et al. 2020, section 4) looks back over some hundred steps only: training has few, and the
# first weights are worth forgetting.
PLAN = Plan(
    epochs=40, batch=64, lr=4e-3, optimizer=partial(torch.optim.Adam, betas=(0.9, 0.99), fused=True), clip=1.0, average=0.99
)
SHORT = replace(PLAN, epochs=12, average=0.98)

MAIN_NAME = "v, cosine"
MAIN = Process("v_prediction", "squaredcos_cap_v2")
OTHERS = {
    "epsilon, linear betas": Process("epsilon", "linear"),  # Ho et al. 2020
    "epsilon, cosine": Process("epsilon"),
    "x0, cosine": Process("sample"),
    "flow matching": Process(FLOW),
}
# None clips its estimate of the clean image on the way: a deterministic solver would drift off its path, as the noise that
# it infers from the same estimate stays unclipped. The finished images are clipped instead.
TRAILING = {"timestep_spacing": "trailing"}
DDIM = Sampler("DDIM, 50 steps", "DDIMScheduler", {"clip_sample": False, **TRAILING}, 50)
DPM = Sampler("DPM++(2M), 20 steps", "DPMSolverMultistepScheduler", TRAILING, 20)
RUNNERS_UP = (
    DPM,
    Sampler("Euler, 50 steps", "EulerDiscreteScheduler", TRAILING, 50),
    Sampler("Euler ancestral, 50 steps", "EulerAncestralDiscreteScheduler", TRAILING, 50),
    Sampler("DDPM, 200 steps", "DDPMScheduler", {"clip_sample": False, **TRAILING}, 200),
)
FLOW_EULER = Sampler("flow Euler, 50 steps", "FlowMatchEulerDiscreteScheduler", {}, 50)
# Except where the noise is predicted: x0 = (x - sigma * noise) / alpha with alpha near 0 at first, which makes any error huge.
CLIPPED = replace(DDIM, settings={**DDIM.settings, "clip_sample": True})


def sampler_for(process: Process) -> Sampler:
    """The one that the kinds of prediction are compared with: 50 steps, no noise added."""
    return {FLOW: FLOW_EULER, "epsilon": CLIPPED}.get(process.prediction, DDIM)


def make(**sizes: Any) -> UNet:
    # channels last: the fastest layout for convolutions with few channels on a CPU
    return UNet(classes=CLASSES, **{**NETWORK, **sizes}).to(memory_format=torch.channels_last)


def teach(session: Session, name: str, process: Process, digits: Digits, plan: Plan = PLAN, **sizes: Any) -> Fitted:
    """The denoiser of `process`, trained."""
    network = session.build(name, partial(make, **sizes))
    return session.fit(name, network, process.loss, (digits.images, digits.labels), plan)


def sketch(
    session: Session, network: UNet, process: Process, sampler: Sampler, count: int, progress: bool = False, **how: Any
) -> Digits:
    """`count` digits, classes 0 to 9 in turn; digit i starts from the same noise whatever the sampler."""
    labels, seeds = session.to_device(torch.arange(count) % CLASSES, session.seed * 2**32 + torch.arange(count))
    with session.kernels():
        drawn = draw(network, process, sampler, labels, seeds, GUIDANCE, progress=progress, **how)
    return Digits(drawn.images.cpu(), drawn.labels.cpu())


class Diffusion(Recipe):
    row = "F6"
    title = "Diffusion models"
    title_es = "Modelos de difusión"
    syllabi = ("S0", "S3")
    source = "Ho, Jain, Abbeel 2020; Song, Meng, Ermon 2021; Nichol & Dhariwal 2021; Salimans & Ho 2022; Ho & Salimans 2022"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn); a fifth held out"
    absent = "CIFAR-10, LSUN and ImageNet are downloads: the papers' FID and Inception scores cannot be checked here"
    models = ("dlops.models.diffusion.unet",)
    kernels = ("conv", "norm", "attention", "diffusion")
    goals = (
        Goal("accuracy", ">=", ACCURACY_GOAL, "of a judge trained apart, DDIM with 50 steps"),
        Goal("distance ratio, off 1", "<=", DISTANCE_GOAL, "to the nearest training digit, over that of held-out digits"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        judge = Judge(training, test)
        many, few = (20, 10) if session.quick else (500, 200)
        samplers = [replace(s, steps=5) if session.quick else s for s in (DDIM, *RUNNERS_UP)]
        scores: dict[str, float] = {}
        lines: list[tuple[str, Tensor]] = [("real digits that no model has seen", _one_of_each(test))]

        def score(what: str, digits: Digits) -> None:
            verdict = judge(digits)
            suffix = "" if what == DDIM.name else f", {what}"
            scores[f"accuracy{suffix}"], scores[f"distance ratio{suffix}"] = verdict.accuracy, verdict.distance_ratio
            title = f"{what}: {verdict.accuracy:.1%} read as asked, distance ratio {verdict.distance_ratio:.2f}"
            lines.append((title, _one_of_each(digits)))

        main = teach(session, MAIN_NAME, MAIN, training).network
        path: list[Tensor] = []
        for sampler in samplers:
            goal = sampler.name == DDIM.name
            watch = (lambda step, time, x: path.append(x[3].cpu().clone())) if goal else None
            score(sampler.name, sketch(session, main, MAIN, sampler, many if goal else few, callback=watch))
        scores["distance ratio, off 1"] = abs(scores["distance ratio"] - 1)
        for name, process in list(OTHERS.items())[-1 if session.quick else 0 :]:
            sampler = replace(sampler_for(process), steps=samplers[0].steps)
            network = teach(session, name, process, training, SHORT).network
            score(f"{name}, {SHORT.epochs} epochs", sketch(session, network, process, sampler, few))
        chosen = torch.linspace(0, len(path) - 1, min(10, len(path))).long().tolist()
        lines.append(("a three comes out of the noise (DDIM)", torch.stack([path[k] for k in chosen]).clamp(-1, 1)))
        return Outcome(scores, self._checks(session, main, test), lambda: pictures.tiles(lines, low=-1, high=1))

    def _checks(self, session: Session, main: UNet, test: Digits) -> list[Check]:
        count, steps = (2, 20) if session.quick else (20, 100)
        images, labels = session.to_device(test.images[:count], test.labels[:count])
        with torch.no_grad(), session.kernels():
            off = (round_trip(main, MAIN, images, labels, steps) - images).square().mean().sqrt().item()
            samplers = [(MAIN, sampler) for sampler in (DDIM, *RUNNERS_UP)] + [(OTHERS["flow matching"], FLOW_EULER)]
            gaussian = max(gaussian_gap(process, sampler) for process, sampler in samplers)
            conversion = conversion_gap()
        return [
            Check("epsilon, x0, v and flow say the same, float64, largest difference", conversion, "<=", 1e-9),
            Check("all samplers on Gaussian data with its exact score, float64, off by (deviations)", gaussian, "<=", 1e-3),
            Check("digit to noise to digit by DDIM, eta 0, RMS difference", off, "<=", 1e-2),
        ]

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(make, MAIN.loss, (training.images[: PLAN.batch], training.labels[: PLAN.batch]), PLAN)


def _one_of_each(digits: Digits) -> Tensor:
    """The first digit of every class [10, 1, 8, 8]."""
    return torch.stack([digits.images[digits.labels == label][0] for label in range(CLASSES)])
