"""A7. Residual connections: 56 layers learn with shortcuts and hardly without; eight layers with them read digits well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import accuracy
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.resnet import BasicBlock, ResNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=10, batch=32, lr=5e-3, weight_decay=5e-2)
DEEP_PLAN = Plan(epochs=8, batch=64, lr=3e-3, weight_decay=1e-2)
DEEP = ("resnet56", "plain56")
NARROW = (4, 8, 16)  # a quarter of the paper's maps, for images of 8x8 instead of 32x32


def resnet8() -> ResNet:
    return ResNet.from_preset("resnet8", channels=1)


def deep(preset: str) -> ResNet:
    return ResNet.from_preset(preset, channels=1, widths=NARROW)


class Residual(Recipe):
    row = "A7"
    title = "Residual connections and depth"
    title_es = "Conexiones residuales y profundidad"
    syllabi = ("S0", "S1")
    source = "He, Zhang, Ren, Sun 2016, sections 3.2, 4.1 and 4.2, equation 1; Veit, Wilber, Belongie 2016, section 3"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn); a fifth held out"
    absent = "the paper's CIFAR-10 and ImageNet are downloads: its 6.97 % error of 56 layers cannot be checked here"
    models = ("dlops.models.vision.resnet",)
    kernels = ("conv",)
    goals = (
        Goal("accuracy, 8 layers", ">=", 0.985, "held-out digits"),
        Goal(
            "56 layers, residual over plain", ">=", 0.01, "difference in accuracy on held-out digits, the same training"
        ),
    )

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        data = training.images, training.labels
        judged = tuple(tensor[: 64 if session.quick else None] for tensor in data)
        network = session.fit("resnet8", session.build("resnet8", resnet8), loss, data, PLAN).network
        scores = {"accuracy, 8 layers": accuracy(session, network, test.images, test.labels)}
        losses, gradients = {}, {}
        for preset in DEEP:
            network = session.build("deep", lambda preset=preset: deep(preset))  # the two have the same weights
            gradients[preset] = gradient_norms(session, network, *(tensor[:64] for tensor in data))
            fitted = session.fit(preset, network, loss, data, DEEP_PLAN)
            losses[preset] = fitted.losses
            scores[f"accuracy, {preset}"] = accuracy(session, fitted.network, test.images, test.labels)
            scores[f"training accuracy, {preset}"] = accuracy(session, fitted.network, *judged)
        scores["56 layers, residual over plain"] = scores["accuracy, resnet56"] - scores["accuracy, plain56"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(session.seed_for("checks"))
            identity, jacobian, shortcut = identity_gap(), jacobian_gap(), shortcut_gap()
        checks = [
            Check("a block with a zero branch, difference from the identity", identity, "<=", 0),
            Check("Jacobian of a block less that of its branch, difference from the identity", jacobian, "<=", 1e-12),
            Check("54 layers with zero branches, gradient less that through the shortcuts", shortcut, "<=", 1e-15),
        ]
        return Outcome(scores, checks, lambda: picture(losses, gradients))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        return Step(resnet8, loss, (training.images[:32], training.labels[:32]), PLAN)


# ---- what holds for every residual network, trained or not; float64


def identity_gap() -> float:
    """Largest |block(x) - x| where the branch's last scale is zero, for x >= 0, as blocks receive it."""
    block = BasicBlock(4, 4).double()
    nn.init.zeros_(block.bn2.weight)
    maps = torch.rand(2, 4, 5, 5, dtype=torch.float64)
    return (block(maps) - maps).abs().max().item()


def jacobian_gap() -> float:
    """Largest element of J_block - (I + J_branch), rows whose ReLU is shut left out: the sum passes the gradient unchanged."""
    block = BasicBlock(2, 2).double().eval()
    maps = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def branch(maps: Tensor) -> Tensor:
        return block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(maps)))))

    whole, part = (
        torch.autograd.functional.jacobian(function, maps).reshape(maps.numel(), -1) for function in (block, branch)
    )
    is_open = block(maps).flatten() > 0
    return (whole - part - torch.eye(len(whole)).to(whole))[is_open].abs().max().item()


def shortcut_gap() -> float:
    """Where all branches are zero, the 27 blocks of the 56-layer network are their shortcuts alone: every second pixel, twice.
    Largest difference of the derivative of a weighted sum of their outputs from the weights, put back at those pixels."""
    network = ResNet.from_preset("resnet56", channels=1, widths=NARROW, zero_branches=True).double()
    maps = torch.rand(2, NARROW[0], 8, 8, dtype=torch.float64).requires_grad_()
    result = network.layer3(network.layer2(network.layer1(maps)))  # [2, 16, 2, 2]
    weights = torch.randn(result.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(result, maps, weights)
    expected = torch.zeros_like(found)
    expected[:, :, ::4, ::4] = weights[:, : NARROW[0]]
    return (found - expected).abs().max().item()


# ---- the picture


def gradient_norms(session: Session, network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Root mean square of the gradient of every convolution's weights, relative to that of the last, before training."""
    convolutions = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    with session.kernels():
        gradients = torch.autograd.grad(loss(network, *session.to_device(images, labels)), convolutions)
    norms = [gradient.double().square().mean().sqrt().item() for gradient in gradients]
    return [norm / norms[-1] for norm in norms]


def picture(losses: dict[str, list[float]], gradients: dict[str, list[float]]) -> Figure:
    """Left: training loss. Right: size of the gradient by layer, before training."""
    made = pictures.figure(6.4, 3.0)
    left, right = made.subplots(1, 2)
    for preset, colour in zip(DEEP, ("C0", "C3")):
        name = "residual" if preset.startswith("resnet") else "plain"
        ys = torch.tensor(losses[preset]).double()
        ys = ys.unfold(0, 10, 1).mean(1) if len(ys) > 20 else ys
        left.plot(ys.numpy(), color=colour, label=name, linewidth=1.2)
        right.plot(range(1, len(gradients[preset]) + 1), gradients[preset], color=colour, label=name, linewidth=1.2)
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="layer", yscale="log")
    left.set_title("56 layers learn", fontsize=9, loc="left")
    right.set_title("gradient at the start / last layer's", fontsize=9, loc="left")
    left.legend(frameon=False, fontsize=8)
    return made
