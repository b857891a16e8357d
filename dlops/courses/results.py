"""What a run leaves behind: ``<out>/<ROW>/<backend>-<device>-seed<N>/`` with result.json, the picture and the checkpoints."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import dlops
from dlops.courses import find
from dlops.courses.recipe import Recipe
from dlops.courses.session import Session

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """One run of one recipe."""

    row: str
    seed: int
    backend: str
    device: str
    quick: bool
    scores: dict[str, float]
    checks: list[dict[str, Any]]  # name, value, relation, limit, holds
    seconds: float  # CPU time of the thread on a CPU, else wall
    fingerprint: str  # of the recipe and its networks
    torch: str
    dlops: str
    isa: str

    @property
    def sound(self) -> bool:
        return all(check["holds"] for check in self.checks)


def fingerprint(recipe: Recipe) -> str:
    """Changes when the recipe or one of its networks is edited: what was computed before then no longer counts."""
    digest = hashlib.sha256()
    for name in (type(recipe).__module__, *recipe.models):
        file = importlib.import_module(name).__file__
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def folder_of(out: Path, row: str, backend: str, device: str, seed: int) -> Path:
    return out / row / f"{backend}-{device}-seed{seed}"


def picture_of(out: Path, row: str, backend: str, device: str, seed: int) -> Path:
    return folder_of(out, row, backend, device, seed) / f"{row}.png"


def load(folder: Path) -> Result | None:
    """What an earlier run left in `folder`; None if nothing that can be read."""
    try:
        return Result(**json.loads((folder / RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def run(
    row: str, seed: int = 0, backend: str = "dlops", device: str = "cpu", quick: bool = False,
    out: Path = Path("build/courses"), progress: bool = False, fresh: bool = False,
) -> Result:  # fmt: skip
    """Runs one recipe and writes its result and picture; goes on from its checkpoints, unless the recipe has been edited.

    Args:
        fresh: forget what an earlier run left.

    Raises:
        ValueError: an unknown row, backend or device; NaN in the data; a checkpoint of another run.
        KeyboardInterrupt: interrupted; the checkpoints are kept.
    """
    from dlops.courses import pictures

    recipe = find(row)
    folder = folder_of(out, recipe.row, backend, device, seed)
    session = Session(recipe.row, seed, device, backend, quick, None if quick else folder, progress)
    key = fingerprint(recipe)
    mark = folder / "fingerprint"
    if folder.exists() and (fresh or not mark.exists() or mark.read_text() != key):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)
    tick = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = tick()
    outcome = recipe.run(session)
    missing = [goal.name for goal in recipe.goals if goal.name not in outcome.scores]
    if missing:
        raise RuntimeError(f"{row}: its run returned no score {missing[0]!r}")
    checks = [{**asdict(check), "holds": check.holds} for check in outcome.checks]
    scores = {name: float(value) for name, value in outcome.scores.items()}
    result = Result(
        recipe.row, seed, backend, device, quick, scores, checks, tick() - start, key,
        torch.__version__, dlops.__version__, dlops.cpu_isa(),
    )  # fmt: skip
    picture_of(out, recipe.row, backend, device, seed).write_bytes(pictures.png(outcome.draw()))
    (folder / RESULT).write_text(json.dumps(asdict(result), indent=1))
    return result
