"""B2. AlexNet, a sixth as wide, tells patches of two photographs apart, in a part of them that it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlops.bench.stock import stock
from dlops.courses import pictures
from dlops.courses.data.photographs import NAMES, load_photographs
from dlops.courses.measures import accuracy, precision_gap
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.alexnet import AlexNet, local_response_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=5, batch=32, lr=2e-3, weight_decay=1e-2)
SIDE = 32
#: Columns of the photographs [0, 384) are for training, [416, 640) for judging; no patch of one touches the other.
TRAINED, HELD_OUT = 384, 416


def draw_patches(photographs: Tensor, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(patches [2 each, 3, 32, 32] from -1 to 1, labels [2 each]) from random places of the left part."""
    _, _, height, _ = photographs.shape
    tops = torch.randint(height - SIDE + 1, (2 * each,), generator=generator).tolist()
    lefts = torch.randint(TRAINED - SIDE + 1, (2 * each,), generator=generator).tolist()
    labels = torch.arange(2).repeat_interleave(each)
    patches = [photographs[k, :, t : t + SIDE, s : s + SIDE] for k, t, s in zip(labels.tolist(), tops, lefts)]
    return torch.stack(patches) * 2 - 1, labels


def grid_patches(photographs: Tensor) -> tuple[Tensor, Tensor]:
    """(patches [182, 3, 32, 32], labels [182]): the right part cut into squares, 13 rows of 7 per photograph."""
    squares = photographs[..., HELD_OUT:].unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)  # [2, 3, 13, 7, 32, 32]
    _, _, rows, columns, _, _ = squares.shape
    patches = squares.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, SIDE, SIDE)
    return patches * 2 - 1, torch.arange(2).repeat_interleave(rows * columns)


def loss(network: nn.Module, patches: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; every other batch is mirrored, as in section 4.1."""
    if torch.rand(()).item() < 0.5:
        patches = patches.flip(3)
    return cross_entropy(network(patches), labels)


def leak(network: AlexNet, image: Tensor) -> float:
    """How far the first half of conv2's maps moves when its input maps of the second half change: not at all (section 3.2)."""
    conv2 = network.features.get_submodule("3")
    maps = torch.rand(1, conv2.in_channels, 7, 7, dtype=image.dtype, device=image.device)
    changed = maps.clone()
    changed[:, conv2.in_channels // 2 :] += 1
    half = conv2.out_channels // 2
    return (conv2(maps) - conv2(changed))[:, :half].abs().max().item()


def norm_error(generator: torch.Generator) -> float:
    """The layer against the formula of section 3.3, written out, in float64."""
    maps = torch.randn(2, 7, 3, 3, dtype=torch.float64, generator=generator) * 50
    expected = torch.empty_like(maps)
    for i in range(7):
        near = maps[:, max(0, i - 2) : min(7, i + 3)]
        expected[:, i] = maps[:, i] / (2 + 1e-4 * near.square().sum(1)) ** 0.75
    return (local_response_norm()(maps) - expected).abs().max().item()


class AlexNetOnPhotographs(Recipe):
    row = "B2"
    title = "AlexNet"
    title_es = "AlexNet"
    syllabi = ("S1", "S2")
    source = "Krizhevsky, Sutskever, Hinton 2012, section 3; one tower: Krizhevsky 2014"
    data = "32x32 patches of two photographs (scikit-learn): trained on the left 60 %, judged on the right 35 %"
    absent = "the paper's ImageNet is a download: its 37.5 % top-1 error cannot be checked here"
    models = ("dlops.models.vision.alexnet",)
    kernels = ("conv",)
    goals = (Goal("accuracy", ">=", 0.9, "patches of the unseen right part: temple or flower"),)

    def run(self, session: Session) -> Outcome:
        photographs = load_photographs()
        training = draw_patches(photographs, 100 if session.quick else 1000, session.generator("patches"))
        patches, labels = grid_patches(photographs)
        network = session.build("small", lambda: AlexNet.from_preset("small", classes=2))
        network = session.fit("small", network, loss, training, PLAN).network
        scores = {
            "accuracy": accuracy(session, network, patches, labels),
            "accuracy of the nearest mean colour": _nearest_colour(training, (patches, labels)),
        }
        return Outcome(scores, self._checks(session, network, patches), lambda: self._draw(session, network, photographs))

    def _checks(self, session: Session, network: nn.Module, patches: Tensor) -> list[Check]:
        # every convolution as published; the linear layers, most of the weights, narrow
        full = session.build("full", lambda: AlexNet.from_preset("one_tower", hidden=64, classes=10)).eval()
        image = torch.rand(1, 3, 224, 224, generator=session.generator("image")).to(session.device)
        with torch.no_grad(), session.kernels():
            parity = (full(image) - stock(full)(image)).abs().max().item()
            leaked = leak(network, image)
        with torch.device("meta"):
            counts = [sum(p.numel() for p in AlexNet.from_preset(name).parameters()) for name in ("original", "one_tower")]
        difference = abs(counts[0] - 60_965_224) + abs(counts[1] - 61_100_840)  # Caffe's bvlc_alexnet, torchvision's alexnet
        norm = norm_error(session.generator("norm"))
        return [
            Check("parameters of both forms, difference from the published counts", difference, "<=", 0),
            Check("224x224, one tower: difference from the same layers of torch.nn", parity, "<=", 1e-4),
            Check("conv2: what one half sees of the other", leaked, "<=", 0),
            Check("local response normalisation: difference from section 3.3, float64", norm, "<=", 1e-12),
            Check("float64 and float32 logits, largest difference", precision_gap(session, network, patches[:32]), "<=", 1e-4),
        ]  # fmt: skip

    def _draw(self, session: Session, network: nn.Module, photographs: Tensor) -> Figure:
        patches, _ = grid_patches(photographs)
        with torch.no_grad(), session.kernels():
            flower = network(patches.to(session.device)).softmax(1)[:, 1].cpu().reshape(2, 13, 7)
        made = pictures.figure(6.4, 4.2)
        above, below = made.subfigures(2, 1, height_ratios=[1.5, 1])
        for axes, photograph, name, map_ in zip(above.subplots(1, 2), photographs, NAMES, flower):
            axes.imshow(photograph.permute(1, 2, 0).numpy())
            extent = (HELD_OUT, HELD_OUT + 7 * SIDE, 13 * SIDE, 0)
            axes.imshow(map_.numpy(), cmap="coolwarm", vmin=0, vmax=1, alpha=0.55, extent=extent)
            axes.set(xlim=(0, 640), ylim=(427, 0))
            axes.set_title(f"{name}: blue says temple, red flower", fontsize=8, loc="left", pad=2)
            axes.set_axis_off()
        filters = network.features.get_submodule("0").weight.detach().cpu()
        below.suptitle("the filters of conv1", fontsize=8, x=0.01, ha="left")
        for axes, kernel in zip(below.subplots(2, len(filters) // 2).flat, filters):
            shown = (kernel - kernel.min()) / (kernel.max() - kernel.min())
            axes.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        return made

    def step(self, session: Session) -> Step:
        batch = draw_patches(load_photographs(), 16, session.generator("patches"))
        return Step(lambda: AlexNet.from_preset("small", classes=2), loss, batch, PLAN)


def _nearest_colour(training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Accuracy of the class whose training patches have the nearer mean colour."""
    colours = [patches.mean((2, 3)) for patches, _ in (training, test)]
    means = torch.stack([colours[0][training[1] == label].mean(0) for label in range(2)])
    return (torch.cdist(colours[1], means).argmin(1) == test[1]).double().mean().item()
