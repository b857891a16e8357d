"""What a recipe is: one row of the courses, from its data to a number that it must reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from dlops.courses.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

#: The syllabi that the rows come from, all public course documents in Spanish: id -> author, title.
SYLLABI = {
    "S0": "Jorge Muñoz: Introducción al deep learning desde la matemática aplicada (2022)",
    "S1": "Gibran Fuentes-Pineda: Aprendizaje profundo (UNAM, 2019)",
    "S2": "Alberto Julián Rigau: Técnicas avanzadas de machine learning: deep learning",
    "S3": "Jorge Calvo Zaragoza: Introducción al deep learning, sesión 4.2",
    "S4": "Manuel Germán y David de la Rosa: Introducción al deep learning, día 4 (Universidad de Jaén)",
}
CHAPTERS = {
    "A": "foundations", "B": "convolutional", "C": "recurrent", "D": "attention", "E": "autoencoders",
    "F": "generative", "G": "detection", "H": "reinforcement", "I": "meta_learning", "J": "geometry",
}  # fmt: skip


def _holds(value: float, relation: str, limit: float) -> bool:
    if relation not in ("<=", ">="):
        raise ValueError(f'relation must be "<=" or ">=": got {relation!r}')
    return value <= limit if relation == "<=" else value >= limit  # NaN holds nowhere


@dataclass(frozen=True)
class Goal:
    """A score and the value that its mean over the seeds must reach. `what` says on which data it is measured."""

    name: str
    relation: str  # "<=" or ">="
    threshold: float
    what: str = ""

    def reached(self, values: Sequence[float]) -> bool:
        return _holds(math.fsum(values) / len(values), self.relation, self.threshold)


@dataclass(frozen=True)
class Check:
    """An invariant, measured: what theory says must hold whatever the seed, and what a broken implementation cannot meet."""

    name: str
    value: float
    relation: str  # "<=" or ">="
    limit: float

    @property
    def holds(self) -> bool:
        return _holds(self.value, self.relation, self.limit)


@dataclass(frozen=True)
class Outcome:
    """What one run of a recipe gave."""

    scores: Mapping[str, float]  # one for every goal, under its name; more may be told: baselines, runners-up
    checks: Sequence[Check]
    draw: Callable[[], Figure]  # the picture of this row; called only where it is wanted

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("Outcome: checks is empty, expected at least one invariant")


@dataclass(frozen=True)
class Step:
    """One training step, for the comparison of its time with stock torch."""

    make: Callable[[], nn.Module]
    loss: Callable[..., Tensor]  # (network, *batch) -> scalar
    batch: tuple[Tensor, ...]
    plan: Plan = Plan(epochs=1)  # of which the optimiser is used


class Recipe:
    """One row of the courses. A subclass per file, named after it (``b1_lenet.py`` holds row B1).

    The class says what the row is; `run` does it; `step` gives the training step that is timed beside stock torch.
    """

    row: ClassVar[str]  # "B1"
    title: ClassVar[str]
    title_es: ClassVar[str]
    syllabi: ClassVar[tuple[str, ...]]  # keys of SYLLABI
    source: ClassVar[str]  # paper, section, equation
    data: ClassVar[str]  # what it is trained on
    absent: ClassVar[str] = ""  # the data of the published result, where it cannot ship, and what that means
    models: ClassVar[tuple[str, ...]] = ()  # "dlops.models.vision.lenet"
    kernels: ClassVar[tuple[str, ...]] = ()  # folders of csrc that do the work: "conv"
    goals: ClassVar[tuple[Goal, ...]] = ()
    seconds: ClassVar[int] = 20  # about, of one run on one CPU core

    def run(self, session: Session) -> Outcome:
        """Trains, measures, checks. Everything random comes from `session`."""
        raise NotImplementedError

    def step(self, session: Session) -> Step | None:
        """The step to time; None where the row trains nothing."""
        return None
