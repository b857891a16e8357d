"""The page that `make courses` writes: one table, one picture per row."""

from __future__ import annotations

import base64
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dlops
from dlops.courses import results
from dlops.courses.recipe import CHAPTERS, SYLLABI

if TYPE_CHECKING:
    from dlops.courses.everything import Row


def number(value: float) -> str:
    """Four significant digits, and no more than are there."""
    return f"{value:.4g}"


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def line(row: Row, quick: bool = False) -> str:
    """One row for the terminal."""
    if row.error:
        return f"{row.recipe.row:4}FAIL  {row.error}"
    verdict = "quick" if quick else "pass" if row.green else "FAIL"
    goals = "; ".join(
        f"{goal.name} {number(statistics.fmean(row.values(goal.name)))} ({goal.relation} {number(goal.threshold)})"
        for goal in row.recipe.goals
    )
    step = f"; step {row.step.ratio:.2f}x" if row.step else ""
    broken = [check["name"] for result in row.results for check in result.checks if not check["holds"]]
    return f"{row.recipe.row:4}{verdict}  {goals or 'invariants only'}{step}" + (f"; BROKEN: {broken[0]}" if broken else "")


def write(out: Path, rows: Sequence[Row], backend: str, device: str, quick: bool, seconds: float) -> Path:
    """Fills report.html.j2 and returns the path of the page; the pictures are embedded, so that it can be moved."""
    from jinja2 import Environment, StrictUndefined

    template = (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["mean"] = statistics.fmean
    pictures = {}
    for row in rows:
        picture = results.picture_of(out, row.recipe.row, backend, device, 0)
        if picture.exists():
            pictures[row.recipe.row] = base64.b64encode(picture.read_bytes()).decode("ascii")
    ratios = [row.step.ratio for row in rows if row.step]
    page = out / "report.html"
    out.mkdir(parents=True, exist_ok=True)
    text = environment.from_string(template).render(
        rows=rows, pictures=pictures, chapters=CHAPTERS, syllabi=SYLLABI, backend=backend, device=device, quick=quick,
        seconds=seconds, mean_ratio=geometric_mean(ratios) if ratios else None,
        versions={"dlops": dlops.__version__, "torch": torch.__version__, "isa": dlops.cpu_isa(), "machine": platform.machine()},
    )  # fmt: skip
    page.write_text(text, encoding="utf-8")
    return page
