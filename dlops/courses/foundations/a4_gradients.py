"""A4. Thirty layers: gradients that vanish and units that collapse, and what initialisation, ReLU and skips do about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.diagnostics import Flow, grad_flow
from dlops.courses.measures import accuracy
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import ACTIVATIONS, MLP, SCHEMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=20, batch=32, lr=2e-3, weight_decay=1e-2, clip=1.0)
FORMS = {"sigmoid": "deep_sigmoid", "ReLU, He": "deep_relu", "residual": "deep_residual"}
DRAWN = {**FORMS, "ReLU, torch's default": "deep_relu"}
THEORY = (("relu", "he"), ("relu", "torch"), ("tanh", "xavier"), ("sigmoid", "xavier"))
WIDTH, DEPTH = 384, 8  # of the networks that are compared with the theory


def gaussian_mean(function: Callable[[Tensor], Tensor], variance: float) -> float:
    """The mean of `function` over a normal variable of mean 0, by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 20_000, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(function(math.sqrt(variance) * z) * density, z).item()


def theory(activation: str, scheme: str, width: int, depth: int) -> tuple[list[float], list[float]]:
    """What becomes of the mean square of the activations and of the squared norm of the gradient from layer to layer.

    In a wide network of equal layers the sums z are normal (Poole et al. 2016, equations 3 and 5; for ReLU it is
    He et al. 2015, equations 8 and 14):

        q' = E[f(z)^2],  z ~ N(0, s q + b)      and backwards      g = s E[f'(z)^2] g',

    with s = width * variance of a weight, b = variance of a bias.

    Returns:
        (mean squares of layers 1..depth for an input of mean square 1, the factor of the gradient through layers 2..depth).
    """
    function = ACTIVATIONS[activation]

    def slope(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(function(z).sum(), z)[0]

    gain = width * SCHEMES[scheme](width, width) ** 2
    bias = 1 / (3 * width) if scheme == "torch" else 0.0
    squares, factors = [], []
    q = 1.0
    for _ in range(depth):
        variance = gain * q + bias
        q = gaussian_mean(lambda z: function(z).square(), variance)
        squares.append(q)
        factors.append(gain * gaussian_mean(lambda z: slope(z).square(), variance))
    return squares, factors[1:]


def theory_gaps(session: Session, networks: int = 8) -> tuple[float, float]:
    """How far the factor per layer, of the mean square and of the squared gradient, is from the theory: the largest over
    `THEORY`, as a share of it. `networks` are averaged: a single one of finite width scatters."""
    generator = session.generator("theory")
    worst = [0.0, 0.0]
    for activation, scheme in THEORY:
        forward, backward = 0.0, 0.0
        for k in range(networks):
            shape = dict(hidden=(WIDTH,) * DEPTH, activation=activation, init=scheme)
            network = session.build(f"theory {k}", lambda shape=shape: MLP(WIDTH, 1, **shape)).cpu().double()
            inputs = torch.randn(32, WIDTH, generator=generator, dtype=torch.float64)
            flows = grad_flow(network, lambda network, x: network(x).sum(), (inputs / inputs.square().mean().sqrt(),))
            forward += flows[DEPTH - 1].rms ** 2 / networks
            backward += (flows[0].gradient / flows[DEPTH - 1].gradient) ** 2 / networks
        squares, factors = theory(activation, scheme, WIDTH, DEPTH)
        gaps = (forward / squares[-1]) ** (1 / DEPTH) - 1, (backward / math.prod(factors)) ** (1 / (DEPTH - 1)) - 1
        worst = [max(old, abs(new)) for old, new in zip(worst, gaps)]
    return worst[0], worst[1]


def twins_apart(images: Tensor, labels: Tensor, steps: int = 20) -> float:
    """Hidden units that start equal get equal gradients and stay equal, as one: their largest difference after training."""
    network = MLP(64, 10, hidden=(16,), activation="tanh").double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with torch.no_grad():
        network.hidden[0].weight.fill_(0.01)
        network.hidden[0].bias.zero_()
        network.output.weight.copy_(network.output.weight[:, :1].expand_as(network.output.weight).clone())
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, images.double(), labels).backward()
        optimizer.step()
    weight = network.hidden[0].weight
    if weight.detach().std() < 1e-3:
        raise RuntimeError("A4: the network of equal units has not learnt at all")
    return (weight - weight[:1]).abs().max().item()


class DeepGradients(Recipe):
    row = "A4"
    title = "Vanishing gradients, collapse, initialisation"
    title_es = "Desvanecimiento del gradiente, colapso de los pesos e inicialización"
    syllabi = ("S0", "S2")
    source = "Glorot & Bengio 2010, section 4.2; He et al. 2015, section 2.2; Poole et al. 2016, section 2"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), a fifth held out"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    goals = (
        Goal("sigmoid", "<=", 0.30, "accuracy, held-out digits: thirty sigmoid layers do not learn"),
        Goal("residual", ">=", 0.95, "the same with ReLU and skips, in the same budget"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        batch = training.images[:128], training.labels[:128]
        scores = {}
        flows: dict[str, list[Flow]] = {}
        for name, preset in DRAWN.items():
            init = {} if name in FORMS else {"init": "torch"}
            network = session.build(name, lambda preset=preset, init=init: MLP.from_preset(preset, **init))
            with session.kernels():
                flows[name] = grad_flow(network, loss, session.to_device(*batch))
            if name in FORMS:
                network = session.fit(name, network, loss, (training.images, training.labels), PLAN).network
                scores[name] = accuracy(session, network, test.images, test.labels)
        forward, backward = theory_gaps(session, networks=2 if session.quick else 8)
        limit = 0.1 if session.quick else 0.05  # five standard deviations of the average of so many networks, or more
        checks = [
            Check("mean square per layer, distance from the theory", forward, "<=", limit),
            Check("squared gradient per layer, distance from the theory", backward, "<=", limit),
            Check("units that start equal, largest difference after 20 steps", twins_apart(*batch), "<=", 1e-12),
        ]
        return Outcome(scores, checks, lambda: _draw(flows))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        make = lambda: MLP.from_preset("deep_relu")  # noqa: E731
        return Step(make, loss, (training.images[:32], training.labels[:32]), PLAN)


def _draw(flows: dict[str, list[Flow]]) -> Figure:
    made = pictures.figure(7.2, 2.9)
    panels = made.subplots(1, 2)
    for axes, title, value in (
        (panels[0], "gradient with respect to the output of a layer", lambda flow: flow.gradient),
        (panels[1], "spread of the output over the samples", lambda flow: flow.std),
    ):
        for name, layers in flows.items():
            axes.plot(range(1, len(layers) + 1), [max(value(flow), 1e-30) for flow in layers], label=name, linewidth=1.2)
        axes.set(yscale="log", xlabel="layer")
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
    panels[0].legend(frameon=False, fontsize=7)
    return made
