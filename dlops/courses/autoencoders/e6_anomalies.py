"""E6. Anomaly detection: an autoencoder that never saw a digit redraws it badly, and the error tells.

One network per left-out digit, trained on the other nine. The score of an image is its reconstruction error; the threshold
is the quantile of the scores of known digits set aside from training, so that the share of false alarms is chosen before
any anomaly is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.autoencoders._common import reconstruction_loss, through, unit_digits
from dlops.courses.measures import auroc
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

LEFT_OUT = (0, 4, 6)
FALSE_ALARMS = 0.05
SET_ASIDE = 5  # every fifth known training digit chooses the threshold
PLAN = Plan(epochs=100, batch=64, lr=3e-3)


def anomaly_scores(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of every image, [N, ...] -> [N]."""
    return (images.double() - reconstructions.double()).square().flatten(1).mean(1)


def area_under_roc(known: Tensor, strange: Tensor) -> float:
    """Chance that a strange sample scores above a known one, ties counted half (Mann & Whitney 1947): [K], [S] -> AUROC."""
    return auroc(torch.cat([known, strange]), torch.arange(len(known) + len(strange)) >= len(known))


def roc(known: Tensor, strange: Tensor) -> tuple[Tensor, Tensor]:
    """(false, true) alarm rates from 0 to 1, one point per threshold at which either changes."""
    thresholds = torch.cat([known, strange]).unique().flip(0)[:, None]
    false, true = ((scores >= thresholds).double().mean(1) for scores in (known, strange))
    return torch.cat([torch.zeros(1).double(), false]), torch.cat([torch.zeros(1).double(), true])


def threshold_for(scores: Tensor, false_alarms: float) -> float:
    """The score above which at most a share `false_alarms` of `scores` lies."""
    return scores.sort(descending=True).values[int(false_alarms * len(scores))].item()


class Anomalies(Recipe):
    row = "E6"
    title = "Anomaly detection"
    title_es = "Detección de anomalías"
    syllabi = ("S4",)
    source = "Japkowicz, Myers & Gluck 1995; Sakurada & Yairi 2014"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn); a fifth held out, one class left out of training"
    models = ("dlops.models.autoencoders.autoencoder",)
    kernels = ("conv",)
    goals = (
        Goal("AUROC, 0 left out", ">=", 0.97, "held-out known digits against all digits of the left-out class"),
        Goal("AUROC, 4 left out", ">=", 0.96, "the same"),
        Goal("AUROC, 6 left out", ">=", 0.88, "the same"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = unit_digits()
        scores, gaps, alarms_aside, parts = {}, [], [], {}
        for digit in LEFT_OUT:
            images = training.images[training.labels != digit]
            aside = torch.arange(len(images)) % SET_ASIDE == 0
            network = session.build(f"without {digit}", Autoencoder)
            network = session.fit(f"without {digit}", network, reconstruction_loss, (images[~aside],), PLAN).network
            strange = torch.cat([part.images[part.labels == digit] for part in (training, test)])
            chosen, known, found = (
                anomaly_scores(part, through(session, network, part))
                for part in (images[aside], test.images[test.labels != digit], strange)
            )
            threshold = threshold_for(chosen, FALSE_ALARMS)
            scores[f"AUROC, {digit} left out"] = area_under_roc(known, found)
            scores[f"detected at {FALSE_ALARMS:.0%} false alarms, {digit} left out"] = (
                (found > threshold).double().mean().item()
            )
            scores[f"false alarms, {digit} left out"] = (known > threshold).double().mean().item()
            unseen = found[-(test.labels == digit).sum() :]  # as frequent as in life: of the held-out digits alone
            alarms = (known > threshold).sum() + (unseen > threshold).sum()
            scores[f"precision, {digit} left out"] = ((unseen > threshold).sum() / alarms.clamp(min=1)).item()
            gaps.append(abs(torch.trapezoid(*reversed(roc(known, found))).item() - area_under_roc(known, found)))
            gaps.append(abs(area_under_roc(known.log(), found.log()) - area_under_roc(known, found)))
            alarms_aside.append((chosen > threshold).double().mean().item())
            parts[digit] = known, found, threshold
        checks = [
            Check(
                "area under the ROC and rank statistic, and after a logarithm, largest difference",
                max(gaps),
                "<=",
                1e-12,
            ),
            Check("false alarms on the digits that chose the threshold", max(alarms_aside), "<=", FALSE_ALARMS),
        ]
        return Outcome(scores, checks, lambda: _draw(parts))

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(Autoencoder, reconstruction_loss, (training.images[: PLAN.batch],), PLAN)


def _draw(parts: dict[int, tuple[Tensor, Tensor, float]]) -> Figure:
    """Histograms of the scores, one panel per left-out digit."""
    made = pictures.figure(6.4, 4.8)
    for axes, (digit, (known, strange, threshold)) in zip(made.subplots(len(parts), 1, sharex=True), parts.items()):
        edges = torch.linspace(0, 0.12, 49).tolist()
        for name, values in (("known digits", known), (f"{digit}, never seen in training", strange)):
            axes.hist(values.clamp(max=0.1199).tolist(), edges, density=True, alpha=0.6, label=name)
        axes.axvline(threshold, color="black", linewidth=1, label=f"threshold for {FALSE_ALARMS:.0%} false alarms")
        axes.set_yticks([])
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("reconstruction error, mean over pixels")
    return made
