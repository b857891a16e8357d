"""A3. Losses and gradient descent: the catalogue against torch's, the rates against the theory, the curves on digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.foundations import losses, optimisers
from dlops.courses.measures import accuracy
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

KAPPAS = (3.0, 10.0, 100.0, 1000.0)
EPOCHS = dict(epochs=8, batch=32, schedule="constant")
PLANS = {
    "SGD": Plan(lr=0.05, optimizer=torch.optim.SGD, **EPOCHS),
    "momentum": Plan(lr=0.05, optimizer="sgd", **EPOCHS),
    "Adam": Plan(lr=2e-3, optimizer="adam", **EPOCHS),
}
#: name -> (ours, torch's), one step each from the same point
PAIRS: dict[str, tuple[optimisers.Step, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "gradient descent": (optimisers.gradient_descent(0.02, 0.1), lambda p: torch.optim.SGD(p, 0.02, weight_decay=0.1)),
    "momentum": (optimisers.momentum(0.02, 0.8), lambda p: torch.optim.SGD(p, 0.02, momentum=0.8)),
    "nesterov": (optimisers.nesterov(0.02, 0.8), lambda p: torch.optim.SGD(p, 0.02, momentum=0.8, nesterov=True)),
    "adagrad": (optimisers.adagrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    "rmsprop": (optimisers.rmsprop(1e-3), lambda p: torch.optim.RMSprop(p, 1e-3)),
    "adam": (optimisers.adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "adamw": (optimisers.adam(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
}


def catalogue(generator: torch.Generator, count: int = 20) -> dict[str, tuple[Callable, Callable, tuple[Tensor, ...]]]:
    """name -> (ours, torch's, arguments in float64, the first of which is differentiated)."""
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    logits, other, third = 3 * draw(count, 5), 3 * draw(count, 5), 3 * draw(count, 5)
    label = torch.arange(count) % 5
    half = (draw(count) > 0).double()
    p = other.softmax(1)
    smoothed = lambda z, t: F.cross_entropy(z, t, label_smoothing=0.1)  # noqa: E731
    triplet = lambda a, p, n: F.triplet_margin_loss(a, p, n, eps=0)  # noqa: E731
    return {
        "mean squares": (losses.mean_squares, F.mse_loss, (logits, other)),
        "mean absolute": (losses.mean_absolute, F.l1_loss, (logits, other)),
        "Huber": (losses.huber, F.huber_loss, (logits, other)),
        "cross-entropy": (losses.cross_entropy, F.cross_entropy, (100 * logits, label)),
        "smoothed": (losses.smoothed_cross_entropy, smoothed, (logits, label)),
        "binary": (losses.binary_cross_entropy, F.binary_cross_entropy_with_logits, (100 * logits[:, 0], half)),
        "hinge": (losses.hinge, F.multi_margin_loss, (logits, label)),
        "KL": (losses.kl_divergence, lambda q, p: F.kl_div(q, p, reduction="batchmean"), (logits.log_softmax(1), p)),
        "Poisson": (losses.poisson, F.poisson_nll_loss, (logits[:, 0], other[:, 0].abs().round())),
        "Gaussian": (losses.gaussian, F.gaussian_nll_loss, (logits, other, third.exp())),
        "cosine": (losses.cosine, F.cosine_embedding_loss, (logits, other, 2 * half - 1)),
        "triplet": (losses.triplet, triplet, (logits, other, third)),
    }


def loss_gap(generator: torch.Generator) -> float:
    """Largest difference between our losses or their gradients and torch's, as a share of the latter's size."""
    worst = 0.0
    for ours, theirs, (input, *others) in catalogue(generator).values():
        found = []
        for function in (ours, theirs):
            leaf = input.detach().clone().requires_grad_()
            value = function(leaf, *others)
            found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        for a, b in zip(*found):
            worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    return worst


def optimiser_gap(generator: torch.Generator, steps: int = 50) -> float:
    """Largest difference between the paths of our optimisers and torch.optim's down a convex function of ten variables, the
    sum of log cosh(A x - b): no chaos, so rounding stays rounding."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    matrix, offset, start = draw(15, 10), draw(15), draw(10)
    gradient = lambda x: matrix.T @ (matrix @ x - offset).tanh()  # noqa: E731
    worst = 0.0
    for step, make in PAIRS.values():
        ours, theirs, state = start.clone(), start.clone().requires_grad_(), {}
        optimizer = make([theirs])
        for _ in range(steps):
            ours = step(ours, gradient(ours), state)
            theirs.grad = gradient(theirs.detach())
            optimizer.step()
            worst = max(worst, (ours - theirs.detach()).abs().max().item())
    return worst


def quadratic(kappa: float, generator: torch.Generator, size: int = 20) -> tuple[Tensor, Tensor]:
    """(a symmetric matrix with eigenvalues evenly from 1 to kappa in a random basis, a random start), float64."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(draw(size, size))[0]
    return basis @ torch.diag(torch.linspace(1, kappa, size, dtype=torch.float64)) @ basis.T, draw(size)


def distances(matrix: Tensor, start: Tensor, make: Callable[[list[Tensor]], Any], steps: int) -> Tensor:
    """|x_t| for t = 0..steps on x A x / 2, whose minimum is 0, by an optimiser of torch."""
    x = start.clone().requires_grad_()
    optimizer = make([x])
    found = [x.detach().norm()]
    for _ in range(steps):
        x.grad = matrix @ x.detach()
        optimizer.step()
        found.append(x.detach().norm())
    return torch.stack(found)


def per_step(path: Tensor, last: int) -> float:
    """By which factor the distance shrinks per step, over the last steps."""
    return (path[-1] / path[-1 - last]).item() ** (1 / last)


class GradientDescent(Recipe):
    row = "A3"
    title = "Losses and gradient descent"
    title_es = "Función de pérdida y descenso del gradiente"
    syllabi = ("S0",)
    source = "Nesterov 2004, theorem 2.1.15; Polyak 1964, theorem 9; Kingma & Ba 2015, algorithm 1"
    data = "convex quadratics; 1,797 handwritten digits of 8x8 pixels (scikit-learn), a fifth held out"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    goals = (Goal("rate", "<=", 0.01, "gradient descent: |contraction per step / theory - 1|, the largest of four"),)

    def run(self, session: Session) -> Outcome:
        generator = session.generator("quadratic")
        gaps, ball_gaps, excess = [], [], []
        paths = {}
        for kappa in KAPPAS:
            matrix, start = quadratic(kappa, generator)
            best, steps = 2 / (1 + kappa), int(5 * kappa) + 30
            makes = {"gradient descent": lambda p, lr=best: torch.optim.SGD(p, lr)}
            lr, beta = optimisers.heavy_ball(1, kappa)
            makes["heavy ball"] = lambda p, lr=lr, beta=beta: torch.optim.SGD(p, lr, momentum=beta)
            makes["Adam, lr 0.05"] = lambda p: torch.optim.Adam(p, 0.05)
            path = distances(matrix, start, makes["gradient descent"], steps)
            gaps.append(abs(per_step(path, 10) / optimisers.contraction(kappa) - 1))
            # no step shrinks the distance less than the theorem says
            excess.append((path[1:] / path[:-1]).max().item() / optimisers.contraction(kappa) - 1)
            # |x_t| goes as t beta^(t/2): the t is taken out, over as many steps as float64 has numbers for
            count = min(900, int(-600 / math.log(beta)))
            ball = distances(matrix, start, makes["heavy ball"], count)
            ball_gaps.append(abs(per_step(ball / torch.arange(count + 1).clamp(min=1), count // 2) / math.sqrt(beta) - 1))
            if kappa == 100:
                paths = {name: distances(matrix, start, make, 300).tolist() for name, make in makes.items()}
                beyond = distances(matrix, start, lambda p: torch.optim.SGD(p, 2.02 / 100), 1500)
        scores = {"rate": max(gaps)}

        training, test = load_digits()
        curves = {}
        for name, plan in PLANS.items():
            network = session.build("digits", lambda: MLP.from_preset("digits"))  # the same start for all
            fitted = session.fit(name, network, _loss, (training.images, training.labels), plan)
            scores[f"digits, {name}"] = accuracy(session, fitted.network, test.images, test.labels)
            curves[name] = fitted.losses
        checks = [
            Check("contraction of the worst step over the theorem's, less 1", max(excess), "<=", 1e-9),
            Check("heavy ball, distance of its rate from sqrt(beta)", max(ball_gaps), "<=", 0.01),
            Check("growth beyond lr = 2 / L, after 1,500 steps", (beyond[-1] / beyond[0]).item(), ">=", 1e3),
            Check("losses and gradients, largest difference from torch's", loss_gap(session.generator("losses")), "<=", 1e-12),
            Check("paths of the optimisers, largest difference from torch.optim's", optimiser_gap(generator), "<=", 1e-10),
        ]
        return Outcome(scores, checks, lambda: _draw(paths, curves))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(lambda: MLP.from_preset("digits"), _loss, (training.images[:32], training.labels[:32]), PLANS["Adam"])


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images), labels)


def _draw(paths: dict[str, list[float]], curves: dict[str, list[float]]) -> Figure:
    made = pictures.figure(7.2, 2.9)
    left, right = made.subplots(1, 2)
    for name, path in paths.items():
        left.plot(path, label=name, linewidth=1.2)
    theory = paths["gradient descent"][0] * optimisers.contraction(100) ** torch.arange(len(paths["gradient descent"]))
    left.plot(theory, "k:", label="theory", linewidth=1)
    left.set(yscale="log", xlabel="step", ylim=(1e-13, 30))
    left.set_title("distance to the minimum, condition number 100", fontsize=9, loc="left")
    for name, values in curves.items():
        right.plot(torch.tensor(values).unfold(0, min(15, len(values)), 1).mean(1), label=name, linewidth=1.2)
    right.set(yscale="log", xlabel="step")
    right.set_title("training loss, MLP on digits", fontsize=9, loc="left")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
        axes.tick_params(labelsize=7)
    return made
