"""A9. Generalisation: networks learn random labels by heart, know digits only where they have seen them, and gain by depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import accuracy
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=60, batch=64, lr=3e-3)
SHORT = Plan(epochs=25, batch=64, lr=3e-3)
HIDDEN = (512, 512)
#: hidden layers -> their width: about 20,000 weights each
SHAPES = {1: 267, 2: 109, 4: 70, 8: 48}


def expressive(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> MLP:
    """A network of 2 N + I weights that has any `targets` [N] on distinct `inputs` [N, I]: Zhang et al. 2017, theorem 1.

    All hidden units read the same projection a x [I weights], and unit j starts at a bias [N] between the projections of
    samples j - 1 and j, in order: the matrix of their activations is triangular and has a solution [N output weights].
    """
    count, features = inputs.shape
    direction = torch.randn(features, generator=generator, dtype=inputs.dtype)
    projections, order = (inputs @ direction).sort()
    starts = torch.cat([projections[:1] - 1, (projections[1:] + projections[:-1]) / 2])
    activations = (projections[:, None] - starts).clamp(min=0)  # lower triangular
    solution = torch.linalg.solve_triangular(activations, targets[order][:, None], upper=False)
    network = MLP(features, 1, hidden=(count,)).to(inputs.dtype)
    with torch.no_grad():
        network.hidden[0].weight.copy_(direction.expand(count, -1))
        network.hidden[0].bias.copy_(-starts)
        network.output.weight.copy_(solution.T)
        network.output.bias.zero_()
    return network


def expressive_gap(generator: torch.Generator, count: int = 100) -> float:
    """Largest error of that network on random targets, float64."""
    inputs = torch.randn(count, 20, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (count,), generator=generator).double()
    with torch.no_grad():
        return (expressive(inputs, targets, generator)(inputs)[:, 0] - targets).abs().max().item()


def sawtooth(depth: int) -> MLP:
    """Telgarsky 2016, section 2: `depth` layers of two rectified units, each folding [0, 1] in two: 2^depth linear pieces."""
    network = MLP(1, 1, hidden=(2,) * depth).double()
    tent = torch.tensor([[2.0, -4.0]])  # 2 relu(x) - 4 relu(x - 1/2)
    with torch.no_grad():
        for k, layer in enumerate(network.hidden):
            layer.weight.copy_(torch.ones(2, 1) if k == 0 else tent.expand(2, 2))
            layer.bias.copy_(torch.tensor([0.0, -0.5]))
        network.output.weight.copy_(tent)
        network.output.bias.zero_()
    return network


def pieces(network: nn.Module, cells: int = 4096) -> int:
    """Linear pieces on [0, 1] of a network of one input whose kinks lie on the grid of so many cells, float64."""
    x = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    with torch.no_grad():
        slopes = network(x[:, None])[:, 0].diff() * cells
    return int((slopes.diff().abs() > 1e-6 * slopes.abs().max()).sum()) + 1


def permutation_gap(network: MLP, images: Tensor, generator: torch.Generator) -> tuple[float, MLP]:
    """Hidden units in another order are the same function at another point of the weights, so the loss is not convex.

    Returns:
        (largest difference between the outputs of the two, float64; the network halfway between them).
    """
    first, second = (MLP(64, 10, hidden=HIDDEN).double() for _ in range(2))
    first.load_state_dict(network.state_dict())
    second.load_state_dict(network.state_dict())
    order = torch.randperm(HIDDEN[0], generator=generator)
    with torch.no_grad():
        second.hidden[0].weight.copy_(first.hidden[0].weight[order])
        second.hidden[0].bias.copy_(first.hidden[0].bias[order])
        second.hidden[1].weight.copy_(first.hidden[1].weight[:, order])
        gap = (first(images.double()) - second(images.double())).abs().max().item()
        for a, b in zip(first.parameters(), second.parameters()):
            a.lerp_(b, 0.5)
    return gap, first.float()


class RandomLabels(Recipe):
    row = "A9"
    title = "Generalisation and random labels"
    title_es = "Generalización, etiquetas al azar, profundidad"
    syllabi = ("S0", "S1")
    source = "Zhang et al. 2017, section 2.2 and theorem 1; Telgarsky 2016; Chollet 2017, section 9.2 (local generalisation)"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), a fifth held out; the labels as they are, and random ones"
    absent = "the paper's CIFAR-10 and ImageNet are downloads: here the same experiment on digits"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    goals = (
        Goal("training, random labels", ">=", 1.0, "accuracy on the random labels that it was trained on"),
        Goal("test, random labels", "<=", 0.13, "accuracy on held-out digits: about a tenth is chance"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        random = torch.randint(10, (len(training),), generator=session.generator("labels"))
        scores, curves = {}, {}
        for kind, labels in (("random", random), ("true", training.labels)):
            network = session.build("network", lambda: MLP(64, 10, hidden=HIDDEN, init="he"))
            fitted = session.fit(kind, network, loss, (training.images, labels), PLAN)
            network, curves[f"{kind} labels"] = fitted.network, fitted.losses
            scores[f"training, {kind} labels"] = accuracy(session, network, training.images, labels)
            scores[f"test, {kind} labels"] = accuracy(session, network, test.images, test.labels)
        # The true function holds everywhere, the learnt one near what it has seen: the same digits, elsewhere.
        shifts = {k: accuracy(session, network, _shifted(test.images, k), test.labels) for k in (0, 1, 2, 3)}
        scores["test, true labels, two pixels to the right"] = shifts[2]
        same, halfway = permutation_gap(network.cpu(), test.images, session.generator("order"))
        scores["test, halfway to itself with its units in another order"] = accuracy(
            session, halfway.to(session.device), test.images, test.labels
        )

        trained = {}
        for depth, width in SHAPES.items():
            network = session.build(f"depth {depth}", lambda d=depth, w=width: MLP(64, 10, hidden=(w,) * d, init="he"))
            network = session.fit(f"depth {depth}", network, loss, (training.images, random), SHORT).network
            trained[depth] = accuracy(session, network, training.images, random)
            scores[f"training, random labels, depth {depth}"] = trained[depth]

        depths = range(1, 11)
        found = [pieces(sawtooth(depth)) for depth in depths]
        wrong = max(abs(n - 2**depth) for n, depth in zip(found, depths))
        fit = expressive_gap(session.generator("theorem"))
        checks = [
            Check("theorem 1: any labels with 2 N + I weights, largest error", fit, "<=", 1e-8),
            Check("pieces of 1 to 10 folding layers, largest difference from 2^depth", wrong, "<=", 0),
            Check("units in another order, largest difference of the outputs", same, "<=", 1e-10),
        ]
        return Outcome(scores, checks, lambda: _draw(curves, shifts, trained))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        make = lambda: MLP(64, 10, hidden=HIDDEN, init="he")  # noqa: E731
        return Step(make, loss, (training.images[:64], training.labels[:64]), PLAN)


def _shifted(images: Tensor, pixels: int) -> Tensor:
    """Moved to the right, the rest paper."""
    return nn.functional.pad(images, (pixels, 0), value=-1.0)[..., : images.shape[-1]]


def _draw(curves: dict[str, list[float]], shifts: dict[int, float], trained: dict[int, float]) -> Figure:
    made = pictures.figure(8, 2.7)
    left, middle, right = made.subplots(1, 3)
    for name, values in curves.items():
        left.plot(torch.tensor(values).unfold(0, min(10, len(values)), 1).mean(1), label=name, linewidth=1.2)
    left.axhline(math.log(10), color="k", linestyle=":", linewidth=1, label="chance")
    left.set(yscale="log", xlabel="step")
    left.legend(frameon=False, fontsize=7, loc=(0.45, 0.62))
    middle.bar([str(k) for k in shifts], list(shifts.values()))
    middle.set(xlabel="pixels to the right", ylim=(0, 1))
    right.bar([f"{depth} x {SHAPES[depth]}" for depth in trained], list(trained.values()), color="C1")
    right.set(xlabel="hidden layers x units", ylim=(0, 1))
    titles = "training loss", "true labels: accuracy on moved digits", "random labels learnt, 20,000 weights"
    for axes, title in zip((left, middle, right), titles):
        axes.set_title(title, fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    return made
