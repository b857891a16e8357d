"""What flows through a network: activations forward, gradients backward, layer by layer, in one step of training.

    flows = grad_flow(network, loss, batch)
    print(table(flows))

Vanishing gradients show as a `gradient` that falls by a factor per layer towards the input, exploding ones as one that grows;
a `std` near 0 says that a layer tells the samples apart no more (collapse), `dead` units that never learn again.
Works with the modules of torch.nn and dlops.nn, fused activations included: Glorot & Bengio 2010, sections 3 and 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: unit = second dimension; of every other module's output it is the last
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)  # fmt: skip


@dataclass(frozen=True)
class Flow:
    """One call of one layer.

    Attributes:
        name: of the module in the network. kind: its class.
        mean, std: of its output over everything but the units, averaged over the units: std is how far the samples differ.
        rms: root of the mean square of its output.
        dead: share of its units whose output is the same for every sample and position.
        gradient: norm of the gradient of the loss with respect to its output; 0 where the loss does not depend on it.
        parameters: norm of its own parameters. parameter_gradient: norm of the gradient with respect to them; both are None
            where it has none that are trained.
    """

    name: str
    kind: str
    mean: float
    std: float
    rms: float
    dead: float
    gradient: float
    parameters: float | None
    parameter_gradient: float | None


def grad_flow(network: nn.Module, loss: Callable[..., Tensor], batch: Sequence[Tensor]) -> list[Flow]:
    """One forward and backward pass; one entry per call of a layer (a module without children), in the order of the calls.

    Runs on a copy: gradients, running statistics and hooks of `network` stay as they are. In the mode, training or
    evaluation, that the network is in.

    Args:
        loss: called as ``loss(network, *batch)``, returns a scalar.
        batch: tensors with one sample per row, two samples at least.

    Raises:
        ValueError: fewer than two samples; the loss is no scalar or depends on no layer.
    """
    if len(batch) == 0 or len(batch[0]) < 2:
        raise ValueError("grad_flow: batch must have two samples at least")
    network = copy.deepcopy(network)
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            while isinstance(output, (tuple, list)):  # an LSTM's: (output, state)
                output = output[0]
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2:
                calls.append((name, module, output))

        return hook

    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(record(name))
    with torch.enable_grad():
        value = loss(network, *batch)
    if value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"grad_flow: loss must be a scalar that depends on the network: got shape {list(value.shape)}")

    trained = [p for p in network.parameters() if p.requires_grad]
    outputs = [output for *_, output in calls]
    wanted = trained + [output for output in outputs if output.requires_grad]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    gradients = {id(tensor): gradient for tensor, gradient in zip(wanted, found)}
    return [_flow(name, module, output, gradients) for name, module, output in calls]


def _flow(name: str, module: nn.Module, output: Tensor, gradients: dict[int, Tensor | None]) -> Flow:
    values = output.detach().double()
    unit = 1 if isinstance(module, _CHANNELS_FIRST) or output.dim() == 4 else output.dim() - 1
    per_unit = values.transpose(0, unit).flatten(1)  # [units, the rest]
    constant = (per_unit == per_unit[:, :1]).all(1)
    own = [p for p in module.parameters(recurse=False) if p.requires_grad]
    return Flow(
        name, type(module).__name__, values.mean().item(), per_unit.std(1).mean().item(), values.square().mean().sqrt().item(),
        constant.double().mean().item(), _norm([gradients.get(id(output))]), _norm([p.detach() for p in own]) if own else None,
        _norm([gradients[id(p)] for p in own]) if own else None,
    )  # fmt: skip


def _norm(tensors: Sequence[Tensor | None]) -> float:
    return sum(t.double().square().sum().item() for t in tensors if t is not None) ** 0.5


def table(flows: Sequence[Flow]) -> str:
    """One line per layer."""
    lines = [f"{'layer':<24}{'kind':<16}{'mean':>10}{'std':>10}{'dead':>7}{'gradient':>11}{'of weights':>12}"]
    for f in flows:
        weights = "" if f.parameter_gradient is None else f"{f.parameter_gradient:.2e}"
        name = f.name or "(the network)"
        lines.append(f"{name:<24}{f.kind:<16}{f.mean:>10.3g}{f.std:>10.3g}{f.dead:>7.1%}{f.gradient:>11.2e}{weights:>12}")
    return "\n".join(lines)
