"""The main job: learn handwritten digits in a few minutes on a CPU, draw new ones, judge them, write a report.

`python -m dlops demo` runs it. A reader may start at `run` below and follow it down: `data` loads the digits, `train`
teaches the U-Net of `dlops.models`, `draw` samples with the schedulers of `dlops.diffusion`, `judge` looks at the
result, `timing` puts the loop beside that of diffusers and `report` writes it all down.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dlops.courses.data.digits import CLASSES, Digits, load_digits
from dlops.courses.judge import ACCURACY_GOAL, DISTANCE_GOAL, Judge, Verdict
from dlops.demo.timing import NetworkTime, StepTime, compare_kernels, compare_loops
from dlops.demo.train import NOISE, Recipe, train
from dlops.models import UNet

GUIDANCE = 1.5
TRAINING_GOAL, TOTAL_GOAL = 180, 360  # seconds on 2 cores; a slower machine misses them without failing the demo
TIMING_BATCH = 10  # digits at once in the comparison of the loops
NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm", "jinja2": "jinja2"}


@dataclass(frozen=True)
class Sampler:
    """One way to draw: a scheduler of `dlops.diffusion`, its settings beyond NOISE, the steps, how many digits.

    No sampler clips its estimate of the clean image on the way: a deterministic solver would drift off its path, as the
    noise that it infers from the same estimate stays unclipped. The finished images are clipped instead.
    """

    name: str
    scheduler: str
    settings: dict[str, Any]
    steps: int
    count: int


SAMPLERS = (
    Sampler("DDIM, 50 steps", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, 50, 1000),
    Sampler("DPM++(2M), 20 steps", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, 20, 1000),
    Sampler("DDPM, 1000 steps", "DDPMScheduler", {"clip_sample": False}, 1000, 100),
)


@dataclass(frozen=True)
class Drawing:
    """What one sampler drew and what the judge says about it."""

    name: str
    digits: Digits
    verdict: Verdict
    seconds: float

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.digits.images.contiguous().numpy().tobytes()).hexdigest()


def draw(network: UNet, sampler: Sampler, seed: int) -> Digits:
    """`sampler.count` digits, classes 0 to 9 in turn. Digit i starts from the same noise whatever the sampler."""
    from dlops import diffusion

    labels = torch.arange(sampler.count) % CLASSES
    images = diffusion.sample(
        network,
        (sampler.count, 1, 8, 8),
        getattr(diffusion, sampler.scheduler)(**NOISE, **sampler.settings),
        sampler.steps,
        seeds=seed * 2**32 + torch.arange(sampler.count),
        guidance=GUIDANCE,
        model_kwargs={"labels": labels},
        uncond_kwargs={"labels": torch.full_like(labels, network.null_class)},
    )
    return Digits(images.clamp(-1, 1), labels)


def run(out: Path = Path("build/demo"), seed: int = 0, quick: bool = False, figure: Path | None = None) -> int:
    """Train, draw, judge, report. The exit code: 0, 1 if a quality goal is missed, 2 if a package is missing.

    Args:
        out: folder for samples.png and report.html; made if absent.
        seed: of the training and of the drawings.
        quick: a few steps of a tiny network; its pictures are not judged.
        figure: also write a smaller picture of the samples here.

    Raises:
        ValueError: seed is not from 0 to 2**31 - 1.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"demo: seed must be from 0 to 2**31 - 1: got {seed}")
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"dlops demo: needs {', '.join(missing)}: pip install 'dlops[demo]'", file=sys.stderr)
        return 2
    start = time.perf_counter()
    recipe, samplers = _quick() if quick else (Recipe(), SAMPLERS)
    training, test = load_digits()
    judge = Judge(training, test)
    before = time.perf_counter()
    network, losses = train(training, recipe, seed)
    training_seconds = time.perf_counter() - before

    drawings = []
    for sampler in samplers:
        print(f"drawing {sampler.count} digits with {sampler.name}", flush=True)
        before = time.perf_counter()
        digits = draw(network, sampler, seed)
        drawings.append(Drawing(sampler.name, digits, judge(digits), time.perf_counter() - before))
    timed = {sampler.name.split(",")[0]: (sampler.scheduler, sampler.settings) for sampler in samplers}
    steps, rounds = (5, 1) if quick else (20, 5)
    times = compare_loops(network, timed, GUIDANCE, steps, TIMING_BATCH, rounds)
    network_time = compare_kernels(network, 2 * max(sampler.count for sampler in samplers), rounds=rounds)
    facts = {
        "seed": seed,
        "quick": quick,
        "recipe": recipe,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "training": len(training),
        "test": len(test),
        "real": judge.real,
        "drawings": drawings,
        "times": times,
        "timing_steps": steps,
        "network_time": network_time,
        "training_seconds": training_seconds,
        "total_seconds": time.perf_counter() - start,
    }
    paths = _write(out, figure, test, losses, facts)
    _print(facts, paths)
    passed = quick or all(drawing.verdict.passed for drawing in drawings)
    return 0 if passed else 1


def _quick() -> tuple[Recipe, tuple[Sampler, ...]]:
    recipe = Recipe(steps=20, batch=32, network={"channels": 8, "multipliers": (1, 2), "groups": 4})
    return recipe, tuple(replace(s, steps=5, count=20, name=s.name.split(",")[0] + ", 5 steps") for s in SAMPLERS)


def _write(out: Path, figure: Path | None, test: Digits, losses: list[float], facts: dict[str, Any]) -> list[Path]:
    """Write the pictures and the report; returns their paths."""
    import dlops
    from dlops.demo import report

    out.mkdir(parents=True, exist_ok=True)
    sheets = [(drawing.name, drawing.digits) for drawing in facts["drawings"]] + [("real test digits", test)]
    samples = report.png(report.contact_sheet(sheets, lines=4))
    (out / "samples.png").write_bytes(samples)
    report.write_html(
        out / "report.html",
        samples,
        report.png(report.loss_curve(losses)),
        guidance=GUIDANCE,
        accuracy_goal=ACCURACY_GOAL,
        distance_goal=DISTANCE_GOAL,
        timing_batch=TIMING_BATCH,
        training_goal=TRAINING_GOAL,
        total_goal=TOTAL_GOAL,
        threads=torch.get_num_threads(),
        versions={
            "dlops": dlops.__version__,
            "torch": torch.__version__,
            "isa": dlops.cpu_isa(),
            "machine": platform.machine(),
        },
        **facts,
    )
    paths = [out / "samples.png", out / "report.html"]
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(report.png(report.contact_sheet([sheets[1], sheets[-1]], lines=4, across=2)))
        paths.append(figure)
    return paths


def _print(facts: dict[str, Any], paths: list[Path]) -> None:
    """The numbers as a small table, then the paths."""
    real: Verdict = facts["real"]
    print(f"\n{'':22}{'digits':>7}{'accuracy':>10}{'distance':>10}{'ratio':>8}{'seconds':>9}")
    print(f"{'real test digits':22}{facts['test']:7}{real.accuracy:10.4f}{real.distance:10.3f}{1:8.3f}")
    for drawing in facts["drawings"]:
        verdict, goal = drawing.verdict, "" if facts["quick"] else "  pass" if drawing.verdict.passed else "  FAIL"
        print(
            f"{drawing.name:22}{len(drawing.digits):7}{verdict.accuracy:10.4f}{verdict.distance:10.3f}"
            f"{verdict.distance_ratio:8.3f}{drawing.seconds:9.1f}{goal}"
        )
    print(f"goals: accuracy >= {ACCURACY_GOAL}, distance within {DISTANCE_GOAL:.0%} of that of real test digits")
    times: list[StepTime] | None = facts["times"]
    if times is None:
        print("\ntime per step: not measured beside diffusers, which is not installed (pip install 'dlops[demo]')")
    else:
        print(f"\n{'us per step':22}{'solver':>10}{'diffusers':>11}{'ratio':>8}{'whole step':>12}{'diffusers':>11}")
        for row in times:
            print(
                f"{row.sampler:22}{row.ours_solver:10.1f}{row.theirs_solver:11.1f}"
                f"{row.theirs_solver / row.ours_solver:7.1f}x{row.ours_step:12.0f}{row.theirs_step:11.0f}"
            )
    network: NetworkTime = facts["network_time"]
    print(
        f"\none pass of the network: {network.ours:.0f} us, on torch's kernels {network.theirs:.0f} us:"
        f" {network.theirs / network.ours:.2f}x"
    )
    print(
        f"\ntraining {facts['training_seconds']:.0f} s (goal on 2 cores: {TRAINING_GOAL}),"
        f" in all {facts['total_seconds']:.0f} s (goal: {TOTAL_GOAL}), {torch.get_num_threads()} threads"
    )
    for path in paths:
        print(path)
