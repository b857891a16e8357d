"""The main job: learn handwritten digits in a few minutes on a CPU, draw new ones, judge them, write a report.

`python -m dlops demo` runs it. A reader may start at `run` below and follow it down: `teach` and `sketch`, of course
recipe F6, train the U-Net of `dlops.models` and draw with the schedulers of `dlops.diffusion`, `judge` looks at the
result, `timing` puts the loop beside that of diffusers and `report` writes it all down.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dlops.courses import missing_packages
from dlops.courses.data.digits import Digits, load_digits
from dlops.courses.generative.denoising import Sampler
from dlops.courses.generative.f6_diffusion import DDIM, DPM, GUIDANCE, MAIN, MAIN_NAME, PLAN, sketch, teach
from dlops.courses.judge import ACCURACY_GOAL, DISTANCE_GOAL, Judge, Verdict
from dlops.courses.session import Session
from dlops.demo.timing import NetworkTime, StepTime, compare_kernels, compare_loops

TRAINING_GOAL, TOTAL_GOAL = 180, 360  # seconds on 2 cores; a slower machine misses them without failing the demo
TIMING_BATCH = 10  # digits at once in the comparison of the loops

SAMPLERS = (  # each with how many digits it draws
    (DDIM, 1000),
    (DPM, 1000),
    (Sampler("DDPM, 1000 steps", "DDPMScheduler", {"clip_sample": False}, 1000), 100),
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
    if missing := missing_packages():
        print(f"dlops demo: needs {', '.join(missing)}: pip install 'dlops[demo]'", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network gains nothing from a second thread, and loses much on a busy machine
    try:
        return _run(out, seed, quick, figure)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, seed: int, quick: bool, figure: Path | None) -> int:
    start = time.perf_counter()
    samplers = [(replace(s, steps=5, name=s.name.split(",")[0] + ", 5 steps"), 20) if quick else (s, n) for s, n in SAMPLERS]
    session = Session("F6", seed, quick=quick, progress=sys.stderr.isatty())  # a bar fills a log file with itself
    training, test = load_digits()
    judge = Judge(training, test)
    before = time.perf_counter()
    print(f"training: {PLAN.epochs} epochs of {len(training)} digits", flush=True)
    fitted = teach(session, MAIN_NAME, MAIN, training)
    network, losses = fitted.network, fitted.losses
    training_seconds = time.perf_counter() - before

    drawings = []
    for sampler, count in samplers:
        print(f"drawing {count} digits with {sampler.name}", flush=True)
        before = time.perf_counter()
        digits = sketch(session, network, MAIN, sampler, count, progress=True)
        drawings.append(Drawing(sampler.name, digits, judge(digits), time.perf_counter() - before))
    timed = {sampler.name.split(",")[0]: (sampler.scheduler, sampler.settings) for sampler, _ in samplers}
    steps, rounds = (5, 1) if quick else (20, 5)
    times = compare_loops(network, timed, GUIDANCE, steps, TIMING_BATCH, rounds)
    network_time = compare_kernels(network, 2 * max(count for _, count in samplers), rounds=rounds)
    facts = {
        "seed": seed,
        "quick": quick,
        "training_steps": len(losses),
        "training_batch": PLAN.batch,
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
