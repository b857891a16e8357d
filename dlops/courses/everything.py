"""`make courses`: every row over several seeds, as many at once as there are cores, then the step times, then the report."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dlops import courses
from dlops.courses import results
from dlops.courses.recipe import Goal, Recipe
from dlops.courses.results import Result
from dlops.courses.steps import StepTime, compare_steps


@dataclass
class Row:
    """What `make courses` knows of one row at the end."""

    recipe: Recipe
    results: list[Result] = field(default_factory=list)
    error: str = ""
    step: StepTime | None = None

    def values(self, name: str) -> list[float]:
        return [result.scores[name] for result in self.results]

    def reached(self, goal: Goal) -> bool:
        return bool(self.results) and goal.reached(self.values(goal.name))

    @property
    def green(self) -> bool:
        """Every seed ran, every invariant holds, every goal is reached by the mean over the seeds."""
        sound = all(result.sound for result in self.results)
        return not self.error and bool(self.results) and sound and all(map(self.reached, self.recipe.goals))


def run(
    names: Sequence[str] | None = None, seeds: int = 3, device: str = "cpu", backend: str = "dlops", quick: bool = False,
    out: Path = Path("build/courses"), fresh: bool = False, jobs: int | None = None, figures: Path | None = None,
) -> int:  # fmt: skip
    """The exit code: 0, or 1 if a row missed a goal, broke an invariant or failed.

    Args:
        names: the rows; None: all.
        seeds: how many: 0, 1, ...
        fresh: run again what an earlier call has finished.
        jobs: processes of one thread each; None: one per core, on a GPU one.
        figures: also copy the pictures here, with 256 colours.

    Raises:
        ValueError: an unknown row or device, seeds < 1.
    """
    from dlops.courses import pictures, report

    if seeds < 1:
        raise ValueError(f"course: seeds must be at least 1: got {seeds}")
    recipes = [courses.find(name) for name in (names or courses.rows())]
    rows = {recipe.row: Row(recipe) for recipe in recipes}
    start = time.perf_counter()
    _run_all(rows, seeds, device, backend, quick, out, fresh, jobs or (1 if device == "cuda" else len(os.sched_getaffinity(0))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print("comparing the time of a training step with stock torch", flush=True)
    for row in rows.values():
        if not row.error:
            row.step = compare_steps(row.recipe, device=device, steps=2 if quick else 20)
    torch.set_num_threads(threads)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name in rows:
            picture = results.picture_of(out, name, backend, device, 0)
            if picture.exists():
                pictures.shrink(picture, figures / f"{name}.png")
    page = report.write(out, list(rows.values()), backend, device, quick, time.perf_counter() - start)
    for row in rows.values():
        print(report.line(row, quick))
    print(page)
    good = all(row.green or (quick and not row.error and all(r.sound for r in row.results)) for row in rows.values())
    return 0 if good else 1


def _run_all(
    rows: dict[str, Row], seeds: int, device: str, backend: str, quick: bool, out: Path, fresh: bool, jobs: int
) -> None:
    """Fills in the results; one line per finished run."""
    waiting: dict[concurrent.futures.Future[Result], tuple[str, int]] = {}
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_one_thread) as pool:
        # the long ones first, so that no core waits at the end
        for row in sorted(rows.values(), key=lambda row: -row.recipe.seconds):
            name = row.recipe.row
            for seed in range(seeds):
                old = None if fresh else results.load(results.folder_of(out, name, backend, device, seed))
                if old and old.fingerprint == results.fingerprint(row.recipe) and old.quick == quick:
                    row.results.append(old)
                    continue
                waiting[pool.submit(results.run, name, seed, backend, device, quick, out, False, fresh)] = (name, seed)
        try:
            for done, future in enumerate(concurrent.futures.as_completed(waiting), 1):
                name, seed = waiting[future]
                try:
                    result = future.result()
                except Exception as error:  # one row that fails must not take the others with it
                    rows[name].error = f"seed {seed}: {type(error).__name__}: {error}"
                    print(f"{name} seed {seed}: FAILED: {error}", file=sys.stderr, flush=True)
                    continue
                rows[name].results.append(result)
                told = ", ".join(f"{goal.name} {result.scores[goal.name]:.4g}" for goal in rows[name].recipe.goals)
                broken = "".join(f"; BROKEN: {c['name']} {c['value']:.3g}" for c in result.checks if not c["holds"])
                place = f"[{done}/{len(waiting)}] {name} seed {seed}"
                print(f"{place}: {told or 'done'}{broken} ({result.seconds:.0f} s)", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for row in rows.values():
        row.results.sort(key=lambda result: result.seed)


def _one_thread() -> None:
    torch.set_num_threads(1)
