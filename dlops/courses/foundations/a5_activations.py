"""A5. Activations: the catalogue, five of them inside the kernels of convolution and linear layers, and how networks learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import dlops
from dlops import nn as fused
from dlops.bench.stock import ACTIVATIONS
from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.foundations._derivatives import cases, derivatives_hold
from dlops.courses.measures import accuracy
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

#: Every activation of torch.nn that takes one number to one number.
CATALOGUE = (
    "Sigmoid", "Tanh", "ReLU", "SiLU", "GELU", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "SELU", "Mish", "Softplus",
    "Softsign", "LogSigmoid", "Hardsigmoid", "Hardtanh", "Hardswish", "ReLU6", "Tanhshrink", "Softshrink", "Hardshrink",
)  # fmt: skip
FUSED = ("sigmoid", "tanh", "relu", "silu", "gelu")
LAYERS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")
PLAN = Plan(epochs=20, batch=64, lr=3e-3, weight_decay=1e-2)
LEARNT = 0.1  # training loss at which a network counts as having learnt


def perceptron(activation: str) -> MLP:
    """Three hidden layers: enough for a saturating activation to be slow."""
    return MLP(64, 10, hidden=(64, 64, 64), activation=activation)


class Activations(Recipe):
    row = "A5"
    title = "Activations"
    title_es = "Funciones de activación"
    syllabi = ("S0", "S2")
    source = "Nair & Hinton 2010; Klambauer et al. 2017, equation 1; Hendrycks & Gimpel 2016; Elfwing et al. 2018"
    data = "small random tensors; 1,797 handwritten digits of 8x8 pixels (scikit-learn), a fifth held out"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)
    goals = (
        Goal(
            "fused less unfused",
            "<=",
            1e-6,
            "root mean square, relative, float32; of outputs and gradients, the worst layer",
        ),
        Goal("fused layers whose derivatives pass", ">=", 1.0, "share; gradcheck and gradgradcheck in float64"),
    )

    def run(self, session: Session) -> Outcome:
        generator = session.generator("tensors")
        backends = ("dlops", "auto") if session.backend == "dlops" else ("torch",)
        layers = [(layer, name, backend) for layer in LAYERS for name in FUSED for backend in backends]
        mean_gap, largest_gap = (max(gaps) for gaps in zip(*(fused_gap(session, *layer) for layer in layers)))
        calls = [case for op in ("linear", "conv1d", "conv2d") for case in cases()[op] if "residual" in case.what]
        with session.kernels():
            passed = [derivatives_hold(case, case.tensors(generator, session.device), session.quick) for case in calls]
        scores = {
            "fused less unfused": mean_gap,
            "fused less unfused, largest": largest_gap,
            "fused layers whose derivatives pass": sum(passed) / len(passed),
        }
        training, test = load_digits()
        losses = {}
        for activation in FUSED:
            # one start for all
            network = session.build("perceptron", lambda activation=activation: perceptron(activation))
            fitted = session.fit(activation, network, loss, (training.images, training.labels), PLAN)
            losses[activation] = fitted.losses
            scores[f"accuracy, {activation}"] = accuracy(session, fitted.network, test.images, test.labels)
            scores[f"steps to a loss of {LEARNT}, {activation}"] = steps_to(fitted.losses, LEARNT)
        mean, square = moments_after_selu()
        selu = max(abs(mean), abs(square - 1))
        checks = [
            Check("fused less unfused, largest difference over largest value", largest_gap, "<=", 5e-6),
            Check("identities between activations, largest difference", identity_gap(), "<=", 1e-14),
            Check("slope of every activation less its differences", slope_gap(), "<=", 1e-8),
            Check("SELU of a standard normal: mean and variance less 0 and 1", selu, "<=", 1e-7),
        ]
        return Outcome(scores, checks, lambda: picture(losses))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(lambda: perceptron("gelu"), loss, (training.images[:64], training.labels[:64]), PLAN)


def fused_gap(session: Session, layer: str, activation: str, backend: str) -> tuple[float, float]:
    """Difference between a layer with its residual and activation in one kernel and the three one after the other.

    Of the outputs without and with a graph (two kernels: with one, what the gradient needs is kept) and of the gradients by
    input, residual and parameters. Where the fused layer takes another algorithm than the plain one, as "auto" may decide, the
    difference is that of the algorithms: Winograd's against torch's.

    Returns:
        root mean square of the difference over that of the value, and largest difference over largest value; of the worst tensor.
    """
    generator = session.generator(f"{layer} {activation}")
    dims = 0 if layer == "Linear" else int(layer[-2])
    sizes = (16, 16, 3) if dims else (16, 16)
    one, plain = (  # the same weights
        session.build(layer, lambda name=name: getattr(fused, layer)(*sizes, activation=name)) for name in (activation, None)
    )  # fmt: skip
    x = torch.randn(4, 16, *(9, 7, 4)[:dims], generator=generator).to(session.device)

    def separately(x: Tensor, residual: Tensor) -> Tensor:
        return ACTIVATIONS[activation](plain(x) + residual)

    def together(x: Tensor, residual: Tensor) -> Tensor:
        return one(x, residual=residual)

    with dlops.backend(backend):
        with torch.no_grad():
            residual = torch.randn(plain(x).shape, generator=generator).to(x.device)
            upstream = torch.randn(residual.shape, generator=generator).to(x.device)
            results = [[function(x, residual)] for function in (together, separately)]
        for function, module, found in zip((together, separately), (one, plain), results):
            leaves = [t.clone().requires_grad_() for t in (x, residual)]
            y = function(*leaves)
            found += [y.detach(), *torch.autograd.grad(y, [*leaves, *module.parameters()], upstream)]
    gaps = [((a - b).norm() / b.norm(), (a - b).abs().max() / b.abs().max()) for a, b in zip(*results)]
    return tuple(max(gap).item() for gap in zip(*gaps))


def steps_to(losses: list[float], level: float, window: int = 10) -> int:
    """The first step at which the mean of the last `window` losses is below `level`; all of them if none is."""
    means = torch.tensor(losses).unfold(0, min(window, len(losses)), 1).mean(1)
    below = (means < level).nonzero()
    return int(below[0]) + window if len(below) else len(losses)


# ---- what must hold, in float64


def points() -> Tensor:
    """Where the derivative exists for all: not at the corners 0, 0.5, 1, 3, 6."""
    return torch.linspace(-7.003, 7.001, 400, dtype=torch.float64)


def identity_gap() -> float:
    x = points()
    f = nn.functional
    pairs = [
        (f.silu(x), x * torch.sigmoid(x)),
        (f.gelu(x), x * torch.special.ndtr(x)),
        (torch.tanh(x), 2 * torch.sigmoid(2 * x) - 1),
        (f.mish(x), x * torch.tanh(f.softplus(x))),
        (f.logsigmoid(x), -f.softplus(-x)),
        (f.hardswish(x), x * f.hardsigmoid(x)),
        (f.relu6(x), f.hardtanh(x, 0, 6)),
        (f.tanhshrink(x), x - torch.tanh(x)),
        (f.celu(x), f.elu(x)),
        (f.softshrink(x), x - f.hardtanh(x, -0.5, 0.5)),
    ]
    return max((a - b).abs().max().item() for a, b in pairs)


def slope_gap() -> float:
    """Of autograd's derivative of every activation from central differences."""
    h, worst = 1e-5, 0.0
    for name in CATALOGUE:
        function = getattr(nn, name)().double().eval()
        x = points().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        with torch.no_grad():
            difference = (function(x + h) - function(x - h)) / (2 * h)
        worst = max(worst, (slope - difference).abs().max().item())
    return worst


def moments_after_selu() -> tuple[float, float]:
    """Mean and mean square of SELU of a standard normal: (0, 1) is its fixed point (Klambauer et al. 2017, section 2)."""
    x, _ = torch.cat(
        [torch.linspace(-12, 0, 20_001, dtype=torch.float64), torch.linspace(0, 12, 20_001).double()]
    ).sort()
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    y = nn.functional.selu(x)
    return torch.trapezoid(y * density, x).item(), torch.trapezoid(y.square() * density, x).item()


def picture(losses: dict[str, list[float]]) -> Figure:
    """The catalogue, function and slope; below it, how networks with those inside our kernels learn."""
    made = pictures.figure(6.4, 7.2)
    above, below = made.subfigures(2, 1, height_ratios=[4, 2.2])
    x = torch.linspace(-4, 4, 401, requires_grad=True)
    grid = above.subplots(4, 6, sharex=True, sharey=True).flatten()
    for axes, name in zip(grid, CATALOGUE):
        y = getattr(nn, name)().eval()(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        is_fused = name.lower() in FUSED
        axes.axhline(0, color="lightgrey", linewidth=0.6)
        axes.axvline(0, color="lightgrey", linewidth=0.6)
        axes.plot(x.detach(), y.detach(), color="C0" if is_fused else "black", linewidth=1.6 if is_fused else 1)
        axes.plot(x.detach(), slope, color="C1", linewidth=0.8, linestyle="--")
        axes.set_title(name, fontsize=7, pad=2, color="C0" if is_fused else "black")
        axes.set_ylim(-2, 3)
        axes.tick_params(labelsize=6)
    for axes in grid[len(CATALOGUE) :]:
        axes.set_axis_off()
    above.suptitle("function, slope (dashed); blue: inside the kernels of convolution and linear layers", fontsize=8)
    axes = below.subplots()
    for name, values in losses.items():
        ys = torch.tensor(values)
        axes.plot(ys.unfold(0, min(10, len(ys)), 1).mean(1), label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("three hidden layers learn digits, the same start", fontsize=9, loc="left")
    return made
