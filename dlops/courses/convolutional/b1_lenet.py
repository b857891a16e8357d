"""B1. LeNet-5 reads handwritten digits, in the paper's form (tanh, average pooling) and in today's (ReLU, max pooling)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import accuracy, precision_gap
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.lenet import LeNet5

if TYPE_CHECKING:
    from dlops.courses.session import Session

PLAN = Plan(epochs=20, batch=32, lr=3e-3, weight_decay=1e-2)


def enlarge(images: Tensor) -> Tensor:
    """[N, 1, 8, 8] -> [N, 1, 32, 32], bilinear."""
    return interpolate(images, scale_factor=4, mode="bilinear")


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, on images shifted by up to 2 of their 32 pixels (half a pixel of the original)."""
    across, down = torch.randint(-2, 3, (2,)).tolist()
    return cross_entropy(network(images.roll((down, across), (2, 3))), labels)


class LeNetOnDigits(Recipe):
    row = "B1"
    title = "LeNet-5"
    title_es = "LeNet-5"
    syllabi = ("S1",)
    source = "LeCun, Bottou, Bengio, Haffner 1998, section II.B"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), enlarged four times; a fifth held out"
    absent = "the paper's MNIST (28x28, 60,000 digits) is a download: its 0.8 % error cannot be checked here"
    models = ("dlops.models.vision.lenet",)
    kernels = ("conv",)
    goals = (Goal("accuracy", ">=", 0.985, "held-out digits, ReLU form"),)

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        images = enlarge(test.images)
        scores = {}
        for form, name in (("relu", "accuracy"), ("original", "accuracy, original form")):
            network = session.build(form, lambda form=form: LeNet5.from_preset(form))
            network = session.fit(form, network, loss, (enlarge(training.images), training.labels), PLAN).network
            scores[name] = accuracy(session, network, images, test.labels)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        checks = [
            # table I of the paper leaves out connections of C3; with all of them C1..C5, F6 and the output have this many
            Check("parameters, difference from the count by hand", abs(parameters - 61_706), "<=", 0),
            Check("float64 and float32 logits, largest difference", precision_gap(session, network, images[:64]), "<=", 1e-4),
        ]
        filters = network.c1.weight.detach().cpu()
        return Outcome(scores, checks, lambda: pictures.tiles([("the six filters of C1", filters)], across=6))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        batch = (enlarge(training.images[:32]), training.labels[:32])
        return Step(LeNet5, loss, batch, PLAN)
