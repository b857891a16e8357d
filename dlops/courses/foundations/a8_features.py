"""A8. Features that transfer: a network trained on the digits 0 to 4 helps to tell 5 to 9 apart from ten examples of each.

It helps by two or three points only: logistic regression on the pixels of these small digits is right nine times in ten.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlops.courses import pictures
from dlops.courses.data.digits import Digits, load_digits
from dlops.courses.features import LinearProbe, features
from dlops.courses.measures import accuracy
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.resnet import ResNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

OLD, NEW = range(5), range(5, 10)
SHOTS = (1, 10)  # labels of each new class
DRAWS = 5  # of those labels
LAYERS = ("conv1", "layer1", "layer2", "layer3")
FOLDS = 5  # of the labelled digits, to choose the layer
PLAN = Plan(epochs=12, batch=32, lr=5e-3, weight_decay=5e-2)
FINE_PLAN = Plan(epochs=20, batch=10, lr=1e-3, weight_decay=1e-2)


def network_of_five() -> ResNet:
    return ResNet.from_preset("resnet8", channels=1, classes=len(OLD))


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, on images shifted by up to a pixel."""
    across, down = torch.randint(-1, 2, (2,)).tolist()
    return cross_entropy(network(images.roll((down, across), (2, 3))), labels % len(OLD))


def of_classes(digits: Digits, classes: range) -> Digits:
    chosen = torch.isin(digits.labels, torch.tensor(list(classes)))
    return Digits(digits.images[chosen], digits.labels[chosen])


def draw_labelled(digits: Digits, per_class: int, generator: torch.Generator) -> Digits:
    """`per_class` random digits of every class."""
    order = torch.randperm(len(digits), generator=generator)
    chosen = torch.cat([order[digits.labels[order] == label][:per_class] for label in digits.labels.unique()])
    return Digits(digits.images[chosen], digits.labels[chosen])


def outputs(session: Session, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """'pixels' and every layer -> [N, ...] of `images`."""
    with torch.no_grad(), session.kernels(), features(network, LAYERS) as found:
        network(*session.to_device(images))
    return {"pixels": images, **{layer: output.cpu() for layer, output in found.items()}}


class Features(Recipe):
    row = "A8"
    title = "Feature learning and transfer"
    title_es = "Aprendizaje de características y transferencia"
    syllabi = ("S1",)
    source = "Razavian, Azizpour, Sullivan, Carlsson 2014; Yosinski, Clune, Bengio, Lipson 2014, section 2"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn): 0 to 4 to learn features from, 5 to 9 to use them on"
    absent = "the paper's OverFeat, trained on ImageNet, and its photographs are downloads: digits stand for both"
    models = ("dlops.models.vision.resnet",)
    kernels = ("conv",)
    goals = (
        Goal("features over pixels", ">=", 0.01, "logistic regression, 10 labels per class, held-out digits 5 to 9"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        old, new, judged = of_classes(training, OLD), of_classes(training, NEW), of_classes(test, NEW)
        network = session.build("network", network_of_five)
        untrained = copy.deepcopy(network).eval()
        network = session.fit("old digits", network, loss, (old.images, old.labels), PLAN).network
        generator = session.generator("labels")
        draws = [draw_labelled(new, shots, generator) for shots in SHOTS for _ in range(1 if session.quick else DRAWS)]
        kept = {"trained": network, "untrained": untrained}
        there = {name: outputs(session, one, judged.images) for name, one in kept.items()}
        found: dict[tuple[str, str, int], list[float]] = {}  # which network, layer, labels per class
        chosen: dict[int, list[float]] = {shots: [] for shots in SHOTS}
        picked: dict[str, int] = dict.fromkeys(LAYERS, 0)
        steepest = 0.0
        for labelled in draws:
            shots = len(labelled) // len(NEW)
            for name, one in kept.items():
                caught = outputs(session, one, labelled.images)
                for layer, values in caught.items():
                    probe = LinearProbe(values, labelled.labels)
                    steepest = max(steepest, probe.gradient)
                    score = probe.accuracy(there[name][layer], judged.labels)
                    found.setdefault((name, layer, shots), []).append(score)
                if name == "trained":
                    layer = best_layer(caught, labelled.labels, shots)
                    picked[layer] += 1
                    chosen[shots].append(found[name, layer, shots][-1])
        means = {key: sum(values) / len(values) for key, values in found.items()}
        reached = {shots: sum(values) / len(values) for shots, values in chosen.items()}
        few, many = SHOTS
        labelled = draws[-1]
        tuned = session.fit(
            "tuned", copy.deepcopy(network), loss, (labelled.images, labelled.labels), FINE_PLAN
        ).network
        scores = {
            "features over pixels": reached[many] - means["trained", "pixels", many],
            "pixels": means["trained", "pixels", many],
            "features": reached[many],
            "features of the untrained network, best layer": max(means["untrained", layer, many] for layer in LAYERS),
            "fine-tuned, one draw": accuracy(session, tuned, judged.images, judged.labels % len(OLD)),
            "features over pixels, 1 label": reached[few] - means["trained", "pixels", few],
            "pixels, 1 label": means["trained", "pixels", few],
        }
        checks = [
            Check(
                "logits from the caught features less the network's",
                head_gap(session, network, judged.images),
                "<=",
                1e-6,
            ),
            Check("gradient of the probe's loss where it stopped", steepest, "<=", 1e-6),
        ]
        return Outcome(scores, checks, lambda: picture(there["trained"][max(picked, key=picked.get)], judged.labels, means))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        old = of_classes(training, OLD)
        return Step(network_of_five, loss, (old.images[:32], old.labels[:32]), PLAN)


def head_gap(session: Session, network: ResNet, images: Tensor) -> float:
    """What is caught is what the network goes on with: its last layers give the same logits from it."""
    (images,) = session.to_device(images)
    with torch.no_grad(), session.kernels(), features(network, ["layer3"]) as found:
        logits = network(images)
        return (network.fc(found["layer3"].mean((2, 3))) - logits).abs().max().item()


def best_layer(found: dict[str, Tensor], labels: Tensor, shots: int) -> str:
    """The layer whose probe is right most often about labelled digits that it was not fitted to; where there is one label per
    class, so that none can be spared, the middle one (early layers are still pixels, late ones know the old classes only:
    Yosinski et al. 2014). The held-out digits have no say."""
    if shots < FOLDS:
        return LAYERS[len(LAYERS) // 2]
    folds = torch.arange(len(labels)) % FOLDS  # the labels come class by class, so every fold has some of each
    right = {}
    for layer in LAYERS:
        values = found[layer]
        right[layer] = sum(
            LinearProbe(values[folds != k], labels[folds != k]).accuracy(values[folds == k], labels[folds == k])
            for k in range(FOLDS)
        )
    return max(right, key=right.get)


def picture(found: Tensor, labels: Tensor, means: dict[tuple[str, str, int], float]) -> Figure:
    """Left: the new digits in the plane of the two main directions of the features. Right: accuracy by layer."""
    made = pictures.figure(6.4, 3.2)
    left, right = made.subplots(1, 2)
    values = found.flatten(1).double()
    values = (values - values.mean(0)) / (values.std(0) + 1e-6)
    plane = values @ torch.linalg.svd(values, full_matrices=False).Vh[:2].T
    for label in NEW:
        left.scatter(*plane[labels == label].T, s=8, label=str(label))
    left.legend(frameon=False, fontsize=7, ncols=5, handletextpad=0, columnspacing=0.5, loc="upper center")
    left.set_ylim(top=plane[:, 1].max().item() * 1.3)
    left.set(xticks=[], yticks=[])
    left.set_title("digits never seen, as the network sees them", fontsize=9, loc="left")
    names = ("pixels", *LAYERS)
    for shots, colour in zip(SHOTS, ("C1", "C0")):
        for name, style in (("trained", "-o"), ("untrained", ":")):
            right.plot(names, [means[name, layer, shots] for layer in names], style, color=colour, markersize=4,
                       label=f"{shots} label{'s' * (shots > 1)} a class, {name}")  # fmt: skip
    right.set_ylim(0.3, 1)
    right.tick_params(labelsize=7)
    right.legend(frameon=False, fontsize=7, loc="lower left")
    right.set_title("linear probe on 5 to 9: accuracy", fontsize=9, loc="left")
    return made
