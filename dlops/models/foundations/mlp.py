"""The neuron, the perceptron and the multilayer perceptron.

Perceptron: Rosenblatt 1958, "The perceptron: a probabilistic model", with the rule in the form of Novikoff 1962.

    y = step(w x + b);  on a mistake  w += (t - y) x,  b += t - y

MLP: Rumelhart, Hinton, Williams 1986, "Learning representations by back-propagating errors", equations 1 and 2.

    x [N, I] -> h_1 = f(W_1 x + b_1) [N, H_1] -> ... -> h_L [N, H_L] -> logits W h_L + b [N, O]

What differs: the last layer has no activation (the loss brings its own), any activation f instead of the logistic function,
and what came later is a switch: initialisation (Glorot & Bengio 2010; He et al. 2015), dropout (Srivastava et al. 2014),
normalisation (Ioffe & Szegedy 2015; Ba et al. 2016), and skips over every two layers (He et al. 2016, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu, "silu": nn.functional.silu, "gelu": nn.functional.gelu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}  # fmt: skip
NORMS = {None: None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
#: name -> standard deviation of the weights of a layer with so many inputs and outputs
SCHEMES: dict[str, Callable[[int, int], float]] = {
    "torch": lambda inputs, outputs: 1 / math.sqrt(3 * inputs),  # U(-1/sqrt(I), 1/sqrt(I)), biases too: LeCun et al. 1998
    "xavier": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),  # Glorot & Bengio 2010, equation 16
    "he": lambda inputs, outputs: math.sqrt(2 / inputs),  # He et al. 2015, equation 10
}


def _check_choice(kind: str, argument: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{kind}: {argument} must be one of {', '.join(map(repr, allowed))}: got {value!r}")


def _check_sizes(kind: str, **sizes: int) -> None:
    for argument, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{kind}: {argument} must be a positive integer: got {size!r}")


def _flat(kind: str, input: Tensor, features: int) -> Tensor:
    """[N, ...] -> [N, features]"""
    if input.dim() < 2 or math.prod(input.shape[1:]) != features:
        raise ValueError(f"{kind}: input must have {features} values per sample, [N, {features}]: got {list(input.shape)}")
    return input.flatten(1)


class Perceptron(nn.Module):
    """One layer of neurons, trained by Rosenblatt's rule (`learn`) or, through its smooth output, by gradient descent.

    Args:
        inputs: features of a sample. outputs: neurons.
        activation: of `forward`, one of the five of `dlops.nn.Linear`; None: the weighted sum.

    Shape:
        input [N, ...] with `inputs` values per sample -> [N, outputs].

    Raises:
        ValueError: a size below 1, an unknown activation, an input of another size.
    """

    def __init__(self, inputs: int, outputs: int = 1, activation: str | None = "sigmoid") -> None:
        super().__init__()
        _check_sizes("Perceptron", inputs=inputs, outputs=outputs)
        _check_choice("Perceptron", "activation", activation, (None, *ACTIVATIONS))
        self.neurons = nn.Linear(inputs, outputs, activation=activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.neurons(_flat("Perceptron", input, self.neurons.in_features))

    def fire(self, input: Tensor) -> Tensor:
        """The step function: 1 where the weighted sum is above 0, else 0, [N, outputs]."""
        flat = _flat("Perceptron", input, self.neurons.in_features)
        return (nn.functional.linear(flat, self.neurons.weight, self.neurons.bias) > 0).to(input.dtype)

    @torch.no_grad()
    def learn(self, input: Tensor, target: Tensor, passes: int = 100) -> int:
        """Rosenblatt's rule from zero weights, sample by sample, until a pass without mistakes or for `passes` of them.

        A neuron whose samples can be separated with margin g by a line through (x, 1) makes at most max(|x|^2 + 1) / g^2
        mistakes (Novikoff 1962), in any order. Where they cannot, as in XOR, the rule never settles.

        Args:
            input: [N, ...]. target: [N, outputs], 0 or 1.

        Returns:
            int: the mistakes made, over all neurons.

        Raises:
            ValueError: targets of another shape, or other than 0 and 1.
        """
        flat = _flat("Perceptron", input, self.neurons.in_features)
        weight, bias = self.neurons.weight.zero_(), self.neurons.bias.zero_()
        if target.shape != (len(flat), len(bias)) or not ((target == 0) | (target == 1)).all():
            raise ValueError(f"Perceptron: target must be 0 or 1, [{len(flat)}, {len(bias)}]: got {list(target.shape)}")
        mistakes = 0
        for _ in range(passes):
            before = mistakes
            for x, t in zip(flat, target.to(flat.dtype)):
                change = t - (weight @ x + bias > 0).to(x.dtype)  # [outputs]: 0 where right, else 1 or -1
                wrong = int(change.count_nonzero())
                if wrong:
                    weight += change.outer(x)
                    bias += change
                    mistakes += wrong
            if mistakes == before:
                break
        return mistakes


class MLP(Presets, nn.Module):
    """Args:
        inputs: values of a sample. outputs: logits. hidden: units of each hidden layer; () is a linear model.
        activation: "relu", "silu", "gelu", "tanh" or "sigmoid".
        init: "torch" (what torch.nn.Linear does), "xavier" (uniform) or "he" (normal); the last two with zero biases.
        residual: the layers after the first in blocks of two, h -> f(W' f(W h + b) + b' + h); hidden layers of equal size.
        dropout: share of the units of every hidden layer that training leaves out.
        norm: None, "batch" or "layer": between the weighted sum and the activation.

    Shape:
        input [N, ...] with `inputs` values per sample -> logits [N, outputs].

    Raises:
        ValueError: a size below 1, an unknown name, unequal layers with residual, an input of another size.
    """

    PRESETS = {
        # Zhang et al. 2017, table 1: 28x28 crops of CIFAR-10
        "zhang_1x512": {"inputs": 28 * 28 * 3, "outputs": 10, "hidden": (512,)},
        "zhang_3x512": {"inputs": 28 * 28 * 3, "outputs": 10, "hidden": (512,) * 3},
        # Srivastava et al. 2014, table 2: 3 layers of 1,024 rectified units on MNIST
        "srivastava_3x1024": {"inputs": 28 * 28, "outputs": 10, "hidden": (1024,) * 3, "dropout": 0.5},
        # trained by the recipes
        "digits": {"inputs": 64, "outputs": 10, "hidden": (128, 128), "init": "he"},
        "wine": {"inputs": 13, "outputs": 3, "hidden": (32,), "init": "he"},
        "breast_cancer": {"inputs": 30, "outputs": 2, "hidden": (32,), "init": "he"},
        "deep_sigmoid": {"inputs": 64, "outputs": 10, "hidden": (64,) * 29, "activation": "sigmoid", "init": "xavier"},
        "deep_relu": {"inputs": 64, "outputs": 10, "hidden": (64,) * 29, "activation": "relu", "init": "he"},
        "deep_residual": {"inputs": 64, "outputs": 10, "hidden": (64,) * 29, "init": "xavier", "residual": True},
    }

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (128,), activation: str = "relu", init: str = "torch",
        residual: bool = False, dropout: float = 0.0, norm: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_sizes("MLP", inputs=inputs, outputs=outputs, **{f"hidden[{k}]": size for k, size in enumerate(hidden)})
        _check_choice("MLP", "activation", activation, tuple(ACTIVATIONS))
        _check_choice("MLP", "init", init, tuple(SCHEMES))
        _check_choice("MLP", "norm", norm, tuple(NORMS))
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"MLP: hidden must be layers of one size where residual is True: got {tuple(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"MLP: dropout must be from 0 to below 1: got {dropout}")
        self.residual = residual
        self.activation = activation
        sizes = [inputs, *hidden]
        fused = None if norm else activation  # where nothing stands between them
        self.hidden = nn.ModuleList(nn.Linear(i, o, activation=fused) for i, o in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(NORMS[norm](size) for size in hidden) if norm else None
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.output = nn.Linear(sizes[-1], outputs)
        for layer in (*self.hidden, self.output):
            initialise(layer, init)

    def forward(self, input: Tensor) -> Tensor:
        h = _flat("MLP", input, (self.hidden[0] if len(self.hidden) else self.output).in_features)
        skip = None
        for k, layer in enumerate(self.hidden):
            if self.residual and k % 2 == 1:
                skip = h  # what enters layers k and k + 1, counted from 0
            added = skip if self.residual and k % 2 == 0 and k > 0 else None
            if self.norms is None:
                h = layer(h, added)
            else:
                h = self.norms[k](layer(h))
                h = ACTIVATIONS[self.activation](h if added is None else h + added)
            if self.dropout is not None:
                h = self.dropout(h)
        return self.output(h)


@torch.no_grad()
def initialise(layer: nn.Linear, scheme: str) -> None:
    """Draws the weights of `layer` by a scheme of `SCHEMES`, from torch's global generator."""
    deviation = SCHEMES[scheme](layer.in_features, layer.out_features)
    if scheme == "torch":
        layer.reset_parameters()
    elif scheme == "xavier":
        layer.weight.uniform_(-math.sqrt(3) * deviation, math.sqrt(3) * deviation)
        layer.bias.zero_()
    else:
        layer.weight.normal_(0, deviation)
        layer.bias.zero_()
