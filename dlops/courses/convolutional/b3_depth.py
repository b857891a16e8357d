"""B3. The "revolution of depth": VGG, GoogLeNet and ResNet, small, on the same digits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.bench.stock import stock
from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import accuracy, precision_gap
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.googlenet import GoogLeNet, googlenet_loss
from dlops.models.vision.resnet import ResNet
from dlops.models.vision.vgg import VGG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=16, batch=32, lr=2e-3, weight_decay=1e-2)
PLANS = {
    "VGG": replace(PLAN, lr=1e-3),  # nothing normalises it: at the others' rate its loss jumps
    "ResNet": replace(PLAN, lr=3e-3, epochs=12),  # batch norm after every convolution: it stands a higher rate
}
SMALL = {
    "VGG": lambda: VGG.from_preset("small", channels=1, classes=10),
    "GoogLeNet": lambda: GoogLeNet.from_preset("small", channels=1, classes=10, dropout=0.3, auxiliary_dropout=0.5),
    "ResNet": lambda: ResNet.from_preset("resnet8", channels=1),
}
#: The networks of the papers, and how many parameters these have by the papers' tables.
FULL = {
    "VGG-16": (lambda: VGG.from_preset("vgg16"), 138_357_544),
    "GoogLeNet": (lambda: GoogLeNet.from_preset("original", auxiliary=()), 6_998_552),
    "ResNet-18": (lambda: ResNet.from_preset("resnet18"), 11_689_512),
    "ResNet-152": (lambda: ResNet.from_preset("resnet152"), 60_192_808),
}


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, that of GoogLeNet's auxiliary classifiers included, on images shifted by up to half a pixel."""
    return googlenet_loss(network(shifted(images)), labels)


def shifted(images: Tensor) -> Tensor:
    """The batch [N, C, H, W] moved by a random part of a pixel, at most half, along both axes; linear interpolation."""
    for axis in (2, 3):
        part = torch.rand(()).item() - 0.5
        images = images.lerp(images.roll(1 if part > 0 else -1, axis), abs(part))
    return images


class RevolutionOfDepth(Recipe):
    row = "B3"
    title = "VGG, GoogLeNet, ResNet"
    title_es = "VGG, GoogLeNet, ResNet: la revolución de la profundidad"
    syllabi = ("S1",)
    source = "Simonyan, Zisserman 2015, table 1; Szegedy and others 2015, table 1; He, Zhang, Ren, Sun 2016, section 4.2"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn); a fifth held out"
    absent = "the papers' ImageNet is a download: their errors of 7.3 %, 6.7 % and 3.6 % (top 5) cannot be checked here"
    models = ("dlops.models.vision.vgg", "dlops.models.vision.googlenet", "dlops.models.vision.resnet")
    kernels = ("conv",)
    goals = tuple(Goal(f"accuracy, {name}", ">=", 0.985, "held-out digits") for name in SMALL)

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        scores, losses, gaps = {}, {}, []
        for name, make in SMALL.items():
            network = session.build(name, make)
            fitted = session.fit(name, network, loss, (training.images, training.labels), PLANS.get(name, PLAN))
            scores[f"accuracy, {name}"] = accuracy(session, fitted.network, test.images, test.labels)
            losses[name] = fitted.losses
            gaps.append(precision_gap(session, fitted.network, test.images[:64]))
        with torch.device("meta"):
            counts = {name: sum(p.numel() for p in make().parameters()) for name, (make, _) in FULL.items()}
        wrong = sum(abs(counts[name] - published) for name, (_, published) in FULL.items())
        checks = [
            Check("parameters of the published forms, difference from the papers' tables", wrong, "<=", 0),
            Check("224x224 GoogLeNet: difference from the same layers of torch.nn", self._parity(session), "<=", 1e-4),
            Check("float64 and float32 logits, largest difference", max(gaps), "<=", 1e-3),
        ]
        return Outcome(scores, checks, lambda: _draw(losses, scores))

    def _parity(self, session: Session) -> float:
        """Share of the largest logit."""
        full = session.build("full", lambda: GoogLeNet.from_preset("original", auxiliary=())).eval()
        image = torch.rand(1, 3, 224, 224, generator=session.generator("image")).to(session.device)
        with torch.no_grad(), session.kernels():
            ours, theirs = full(image), stock(full)(image)
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(SMALL["GoogLeNet"], loss, (training.images[:32], training.labels[:32]), PLAN)


def _draw(losses: dict[str, list[float]], scores: dict[str, float]) -> Figure:
    """The loss of every network, and its errors among the held-out digits."""
    named = {f"{name}: {100 * (1 - scores[f'accuracy, {name}']):.1f} % errors": each for name, each in losses.items()}
    return pictures.curves(named, "step", "loss (GoogLeNet: of three classifiers)", log="y", smooth=20)
