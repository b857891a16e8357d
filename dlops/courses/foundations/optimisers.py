"""Gradient descent and its relatives, each as its paper writes one step.

    step, state = adam(lr=1e-3), {}
    theta = step(theta, gradient, state)

A step takes the parameters, the gradient there and what it remembers (a dict, empty at first) and returns the new
parameters. For reading, and to compare torch's with: the recipes train with torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, "Tensor | int"]
Step = Callable[[Tensor, Tensor, State], Tensor]


def gradient_descent(lr: float, weight_decay: float = 0.0) -> Step:
    """theta - lr g (Cauchy 1847); the decay is that of an added weight_decay / 2 |theta|^2."""
    return lambda theta, g, state: theta - lr * (g + weight_decay * theta)


def momentum(lr: float, beta: float = 0.9) -> Step:
    """The heavy ball (Polyak 1964, equation 9): v = beta v + g, theta - lr v."""

    def step(theta: Tensor, g: Tensor, state: State) -> Tensor:
        state["v"] = beta * state["v"] + g if "v" in state else g
        return theta - lr * state["v"]

    return step


def nesterov(lr: float, beta: float = 0.9) -> Step:
    """Nesterov 1983, in the variables of Sutskever et al. 2013 (equations 3 and 4), shifted to where the gradient is taken."""

    def step(theta: Tensor, g: Tensor, state: State) -> Tensor:
        state["v"] = beta * state["v"] + g if "v" in state else g
        return theta - lr * (g + beta * state["v"])

    return step


def adagrad(lr: float, epsilon: float = 1e-10) -> Step:
    """Duchi, Hazan, Singer 2011, figure 1, diagonal: lr over the root of all squared gradients so far."""

    def step(theta: Tensor, g: Tensor, state: State) -> Tensor:
        state["s"] = state.get("s", torch.zeros_like(g)) + g.square()
        return theta - lr * g / (state["s"].sqrt() + epsilon)

    return step


def rmsprop(lr: float, alpha: float = 0.99, epsilon: float = 1e-8) -> Step:
    """Hinton 2012, lecture 6e: lr over the root of a moving average of the squared gradients."""

    def step(theta: Tensor, g: Tensor, state: State) -> Tensor:
        state["s"] = alpha * state.get("s", torch.zeros_like(g)) + (1 - alpha) * g.square()
        return theta - lr * g / (state["s"].sqrt() + epsilon)

    return step


def adam(
    lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0
) -> Step:
    """Kingma & Ba 2015, algorithm 1; with weight_decay it is AdamW (Loshchilov & Hutter 2019, algorithm 2, line 12): the
    parameters shrink by lr * weight_decay, apart from the gradient and its averages."""

    def step(theta: Tensor, g: Tensor, state: State) -> Tensor:
        t = state["t"] = state.get("t", 0) + 1
        state["m"] = beta1 * state.get("m", torch.zeros_like(g)) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", torch.zeros_like(g)) + (1 - beta2) * g.square()
        m, v = state["m"] / (1 - beta1**t), state["v"] / (1 - beta2**t)  # both averages start at 0: corrected
        return theta - lr * m / (v.sqrt() + epsilon) - lr * weight_decay * theta

    return step


def contraction(kappa: float) -> float:
    """Gradient descent on a convex quadratic with eigenvalues from m to L = kappa m shrinks the distance to the minimum by
    (kappa - 1) / (kappa + 1) per step, with the best constant lr, 2 / (L + m) (Nesterov 2004, theorem 2.1.15)."""
    return (kappa - 1) / (kappa + 1)


def heavy_ball(smallest: float, largest: float) -> tuple[float, float]:
    """(lr, beta) of the heavy ball that are best on such a quadratic; the distance then shrinks by sqrt(beta) per step:
    (sqrt(kappa) - 1) / (sqrt(kappa) + 1) (Polyak 1964, theorem 9)."""
    low, high = math.sqrt(smallest), math.sqrt(largest)
    return 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2
