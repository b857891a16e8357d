"""A1. The perceptron and what it cannot learn; the multilayer perceptron on digits, wines and tumours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.data.tables import load_table
from dlops.courses.measures import accuracy, precision_gap
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP, Perceptron

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

DIGITS = Plan(epochs=30, batch=32, lr=3e-3, weight_decay=1e-2)
TABLES = Plan(epochs=40, batch=16, lr=3e-3, weight_decay=1e-2)
XOR = Plan(epochs=40, batch=16, lr=2e-2)
MARGIN = 0.1  # of the separable points


def xor_points(generator: torch.Generator, per_corner: int = 50) -> tuple[Tensor, Tensor]:
    """Points [N, 2] around the corners of a square and targets [N, 1]: 1 where the signs of the coordinates differ."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat_interleave(per_corner, 0)
    return corners + 0.25 * torch.randn(corners.shape, generator=generator), (corners.prod(1) < 0).float()[:, None]


def separable_points(generator: torch.Generator, count: int = 300, features: int = 5) -> tuple[Tensor, Tensor]:
    """Points [N, features], float64, at least `MARGIN` away from a random hyperplane, and on which side [N, 1] they are."""
    normal = torch.randn(features + 1, generator=generator, dtype=torch.float64)
    normal /= normal.norm()
    points = torch.randn(20 * count, features, generator=generator, dtype=torch.float64)
    heights = points @ normal[:-1] + normal[-1]
    far = (heights.abs() >= MARGIN).nonzero()[:count, 0]
    return points[far], (heights[far] > 0).double()[:, None]


def novikoff(generator: torch.Generator) -> tuple[float, float]:
    """The mistakes of Rosenblatt's rule on separable points, over Novikoff's bound, and the share it has wrong at its end."""
    points, sides = separable_points(generator)
    perceptron = Perceptron(points.shape[1]).double()
    mistakes = perceptron.learn(points, sides, passes=10_000)
    bound = (points.square().sum(1).max().item() + 1) / MARGIN**2
    return mistakes / bound, (perceptron.fire(points) != sides).double().mean().item()


def xor_by_hand() -> float:
    """Largest error of XOR as two rectified units compute it (Goodfellow, Bengio, Courville 2016, section 6.1), float64."""
    network = MLP(2, 1, hidden=(2,)).double()
    weights = [[[1.0, 1.0], [1.0, 1.0]], [0.0, -1.0], [[1.0, -2.0]], [0.0]]
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), weights):
            parameter.copy_(torch.tensor(values))
        corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        return (network(corners)[:, 0] - torch.tensor([0.0, 1.0, 1.0, 0.0])).abs().max().item()


class MLPOnTables(Recipe):
    row = "A1"
    title = "Neuron, perceptron, multilayer perceptron"
    title_es = "Neurona, perceptrón, perceptrón multicapa"
    syllabi = ("S0", "S1", "S4")
    source = "Rosenblatt 1958; Novikoff 1962; Rumelhart, Hinton, Williams 1986, equations 1 to 9"
    data = "1,797 digits of 8x8 pixels, a fifth held out; 178 wines and 569 tumours, three tenths held out (scikit-learn)"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    goals = (
        Goal("digits", ">=", 0.972, "accuracy, held-out digits"),
        Goal("wine", ">=", 0.97, "accuracy, held-out wines"),
        Goal("breast cancer", ">=", 0.94, "accuracy, held-out tumours"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        fitted = session.fit("digits", session.build("digits", digits_mlp), loss, (training.images, training.labels), DIGITS)
        scores = {"digits": accuracy(session, fitted.network, test.images, test.labels)}
        gap = precision_gap(session, fitted.network, test.images)
        losses = {"digits": fitted.losses}
        for name in ("wine", "breast_cancer"):
            table, unseen = load_table(name)
            network = session.build(name, lambda name=name: MLP.from_preset(name))
            fitted = session.fit(name, network, loss, (table.features, table.labels), TABLES)
            label = name.replace("_", " ")
            scores[label] = accuracy(session, fitted.network, unseen.features, unseen.labels)
            losses[label] = fitted.losses

        points, targets = xor_points(session.generator("xor"))
        neuron = session.build("neuron", lambda: Perceptron(2))
        neuron.learn(*session.to_device(points, targets), passes=2 if session.quick else 20)
        network = session.build("xor", lambda: MLP(2, 1, hidden=(8,), activation="tanh"))
        binary = lambda network, x, t: binary_cross_entropy_with_logits(network(x), t)  # noqa: E731
        network = session.fit("xor", network, binary, (points, targets), XOR).network
        regions = {"perceptron": _region(session, neuron.fire), "MLP, 8 hidden units": _region(session, network)}
        mistakes, wrong = novikoff(session.generator("separable"))
        checks = [
            Check("mistakes of the perceptron over Novikoff's bound", mistakes, "<=", 1.0),
            Check("separable points that the perceptron has wrong at the end", wrong, "<=", 0.0),
            Check("XOR with weights by hand, largest error in float64", xor_by_hand(), "<=", 0.0),
            Check("float64 and float32 logits, largest difference", gap, "<=", 1e-4),
        ]
        return Outcome(scores, checks, lambda: _draw(regions, points, targets, losses))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(digits_mlp, loss, (training.images[:32], training.labels[:32]), DIGITS)


def digits_mlp() -> MLP:
    return MLP.from_preset("digits")


def _region(session: Session, network: nn.Module) -> Tensor:
    """Where the output says 1, on a grid over [-2, 2] x [-2, 2]: [81, 81]."""
    axis = torch.linspace(-2, 2, 81)
    grid = torch.cartesian_prod(axis, axis).flip(1)  # rows of equal y
    with torch.no_grad(), session.kernels():
        outputs = network(*session.to_device(grid)).cpu()
    threshold = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0  # of a step, of a logit
    return (outputs > threshold).float().reshape(81, 81)


def _draw(regions: dict[str, Tensor], points: Tensor, targets: Tensor, losses: dict[str, list[float]]) -> Figure:
    made = pictures.figure(8, 2.7)
    *maps, right = made.subplots(1, 3)
    for axes, (title, region) in zip(maps, regions.items()):
        axes.imshow(region, origin="lower", extent=(-2, 2, -2, 2), cmap="coolwarm", alpha=0.35, vmin=0, vmax=1)
        axes.scatter(*points.T, s=4, c=targets[:, 0], cmap="coolwarm")
        axes.set_title(f"XOR: {title}", fontsize=9)
        axes.tick_params(labelsize=7)
    for name, values in losses.items():
        smooth = torch.tensor(values).unfold(0, min(9, len(values)), 1).mean(1)
        right.plot(torch.linspace(0, 1, len(smooth)), smooth, label=name, linewidth=1)
    right.set(yscale="log", xlabel="share of the training")
    right.set_title("training loss", fontsize=9)
    right.tick_params(labelsize=7)
    right.legend(frameon=False, fontsize=7)
    return made
