"""What a network has learnt, layer by layer: the outputs of its layers, and how much a linear classifier gets out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@contextmanager
def features(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Catches the outputs of named layers of `network` in every call inside the block; the last call's stay.

    Args:
        network: any module. layers: names as ``network.named_modules()`` gives them; "" is the network itself.

    Yields:
        dict: name -> output, empty before the first call. With the graph, if the call records one.

    Raises:
        ValueError: a name that the network does not have.

    >>> with features(network, ["layer1", "layer3"]) as found, torch.no_grad():
    ...     network(images)
    >>> found["layer3"].shape
    """
    modules = dict(network.named_modules())
    layers = list(layers)
    for layer in layers:
        if layer not in modules:
            known = ", ".join(repr(name) for name in modules if name)
            raise ValueError(f"features: {type(network).__name__} has no layer {layer!r}, expected one of {known}")
    found: dict[str, Tensor] = {}

    def catch(layer: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
            found[layer] = output

        return hook

    hooks = [modules[layer].register_forward_hook(catch(layer)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class LinearProbe:
    """Multinomial logistic regression on standardised features, solved to the end: deterministic, nothing to tune but `decay`.

    Minimises the mean cross-entropy plus ``decay / 2 * |weight|^2`` (convex: one minimum) in float64 by Newton's method.

    Args:
        inputs: features of the training samples, [N, ...]. labels: [N] int64, any values.
        decay: weight of the penalty.

    Raises:
        ValueError: inputs and labels of different lengths, or fewer than two classes.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, decay: float = 1e-2) -> None:
        if len(inputs) != len(labels):
            raise ValueError(f"LinearProbe: got {len(inputs)} inputs and {len(labels)} labels")
        self.classes, targets = labels.cpu().unique(return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(f"LinearProbe: labels must have at least two classes: got {self.classes.tolist()}")
        x = inputs.detach().flatten(1).double().cpu()
        self._mean, self._scale = x.mean(0), x.std(0) + 1e-6
        # the best weights lie in the span of the samples: in coordinates of that space they are few
        self._span = torch.linalg.svd((x - self._mean) / self._scale, full_matrices=False).Vh.T  # [F, min(N, F)]
        x = self._coordinates(x)
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)  # [N, D]: the bias is one weight more, without a penalty
        penalty = x.new_full((x.shape[1],), decay)
        penalty[-1] = 1e-9  # the same number added to all biases changes nothing: any of them will do
        self._weight = x.new_zeros(x.shape[1], len(self.classes))  # [D, C]
        one_hot = torch.eye(len(self.classes)).to(x)[targets]

        def loss(weight: Tensor) -> Tensor:
            return cross_entropy(x @ weight, targets) + 0.5 * (penalty[:, None] * weight.square()).sum()

        for _ in range(50):
            p = (x @ self._weight).softmax(1)
            gradient = x.T @ (p - one_hot) / len(x) + penalty[:, None] * self._weight
            self.gradient = gradient.abs().max().item()  # 0 at the minimum
            if self.gradient < 1e-10:
                break
            curvature = p.diag_embed() - p[:, :, None] * p[:, None, :]  # [N, C, C]
            hessian = torch.einsum("ni,nj,ncd->icjd", x, x, curvature).reshape(gradient.numel(), -1) / len(x)
            hessian.diagonal().add_(penalty.repeat_interleave(len(self.classes)))
            step = torch.linalg.solve(hessian, gradient.flatten()).view_as(gradient)
            size, before = 1.0, loss(self._weight)
            while loss(self._weight - size * step) > before and size > 1e-6:
                size /= 2
            self._weight = self._weight - size * step

    def _coordinates(self, inputs: Tensor) -> Tensor:
        return ((inputs.detach().flatten(1).double().cpu() - self._mean) / self._scale) @ self._span

    def __call__(self, inputs: Tensor) -> Tensor:
        """The label of every input, [N]."""
        return self.classes[(self._coordinates(inputs) @ self._weight[:-1] + self._weight[-1]).argmax(1)]

    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        return (self(inputs) == labels.cpu()).double().mean().item()
