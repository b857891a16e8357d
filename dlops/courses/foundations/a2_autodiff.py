"""A2. Automatic differentiation: a tape in 200 lines of numpy, and every derivative of this package against differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.foundations import autograd_tour as tour
from dlops.courses.foundations._derivatives import Case, cases, derivatives_hold, differentiable, float32_error
from dlops.courses.recipe import Check, Goal, Outcome, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

SIZES = (64, 32, 10)  # of the perceptron that the tour trains
STEPS, LR = 200, 0.3


class _Wrong(torch.autograd.Function):
    """x^3 with a derivative that is a thousandth too large: what the comparison must find."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3.003 * g * x**2


class AutomaticDifferentiation(Recipe):
    row = "A2"
    title = "Automatic differentiation"
    title_es = "Diferenciación automática"
    syllabi = ("S0",)
    source = (
        "Griewank & Walther 2008, sections 3.2 and 5; Baydin et al. 2018; dlops/courses/foundations/autograd_tour.py"
    )
    data = "small random tensors; 1,797 handwritten digits of 8x8 pixels (scikit-learn) for the network of the tour"
    kernels = ("attention", "conv", "lstm", "norm", "diffusion")
    goals = (
        Goal("functions whose derivatives pass", ">=", 1.0, "share of dlops.functional; gradcheck and gradgradcheck"),
    )

    def run(self, session: Session) -> Outcome:
        generator = session.generator("tensors")
        backend = "dlops" if session.backend == "dlops" else "torch"  # "auto" would hand these small calls to torch
        passed, errors = {}, {}
        made = cases()
        for op in differentiable()[:: 4 if session.quick else 1]:
            drawn = [(case, case.tensors(generator, session.device)) for case in made.get(op, [])]
            with session.kernels():
                holds = [derivatives_hold(case, tensors, session.quick) for case, tensors in drawn]
            passed[op] = bool(holds) and all(holds)
            if passed[op]:
                found = [float32_error(case, tensors, backend) for case, tensors in drawn]
                errors[op] = [max(order) for order in zip(*found)]
        first, second = zip(*errors.values())
        accuracy, gradient, curvature = train_by_tour(session)
        scores = {
            "functions whose derivatives pass": sum(passed.values()) / len(passed),
            "functions": len(passed),
            "accuracy of the network of the tour": accuracy,
        }
        wrong = Case("wrong", _Wrong.apply, [(5,)])
        unnoticed = derivatives_hold(wrong, wrong.tensors(generator, "cpu"), session.quick)
        checks = [
            Check("float32 gradients against float64, largest relative difference", max(first), "<=", 1e-4),
            Check("float32 second derivatives, the same", max(second), "<=", 1e-4),
            Check("the tour's gradients against torch's, largest relative difference", gradient, "<=", 1e-10),
            Check("the tour's second derivatives, the same", curvature, "<=", 1e-10),
            Check("a derivative off by 0.1 % that passes", float(unnoticed), "<=", 0),
        ]
        return Outcome(scores, checks, lambda: picture(errors))


def train_by_tour(session: Session) -> tuple[float, float, float]:
    """Trains a perceptron with the tour alone.

    Returns:
        accuracy on held-out digits; relative difference from torch of the gradient of the loss, and of the gradient of half that
        gradient's square (which takes second derivatives), both at the trained parameters.
    """
    training, test = load_digits()
    generator = session.generator("tour")
    shapes = [shape for pair in zip(SIZES, SIZES[1:]) for shape in (pair, pair[1:])]  # weight, bias, weight, bias
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5 for shape in shapes]
    parameters = [tour.Value(tensor.numpy()) for tensor in start]
    images, labels = training.images.flatten(1).double(), training.labels
    x = tour.Value(images.numpy())

    def loss() -> tour.Value:
        return tour.cross_entropy(tour.perceptron(x, parameters), labels.numpy())

    tour.descend(parameters, loss, 5 if session.quick else STEPS, LR)
    logits = tour.perceptron(tour.Value(test.images.flatten(1).double().numpy()), parameters).array
    accuracy = (torch.from_numpy(logits).argmax(1) == test.labels).double().mean().item()

    gradients = tour.gradients(loss(), parameters)
    square = sum((tour.total(g * g) for g in gradients), tour.Value(0.0)) * 0.5
    ours = gradients, tour.gradients(square, parameters)

    weights = [torch.tensor(p.array, requires_grad=True) for p in parameters]
    hidden = torch.tanh(images @ weights[0] + weights[1])
    expected = torch.nn.functional.cross_entropy(hidden @ weights[2] + weights[3], labels)
    first = torch.autograd.grad(expected, weights, create_graph=True)
    theirs = first, torch.autograd.grad(sum(g.square().sum() for g in first) * 0.5, weights)
    gaps = [relative_gap([torch.from_numpy(g.array) for g in a], b) for a, b in zip(ours, theirs)]
    return accuracy, gaps[0], gaps[1]


def relative_gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected))


def picture(errors: dict[str, list[float]]) -> Figure:
    """The error of every function's float32 derivatives."""
    made = pictures.figure(6.4, 5.6)
    axes = made.subplots()
    names = sorted(errors, reverse=True)
    for order, (label, marker) in enumerate((("gradient", "o"), ("second derivative", "s"))):
        values = [max(errors[name][order], 1e-9) for name in names]
        axes.plot(values, range(len(names)), marker, markersize=4, label=label, alpha=0.8)
    axes.axvline(2**-24, color="grey", linewidth=0.8, linestyle=":")
    axes.text(2**-24, len(names) - 0.2, " rounding of one number", fontsize=7, color="grey", va="bottom")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(-0.7, len(names) + 0.6)
    axes.set(xscale="log", xlabel="largest relative difference, float32 against float64")
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_title("derivatives of every function of dlops.functional", fontsize=9, loc="left")
    return made
