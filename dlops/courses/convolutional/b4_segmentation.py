"""B4. Every pixel of a collage of digits gets its class: U-Net and FCN, with cross-entropy and Dice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.courses import pictures
from dlops.courses.data.collages import BACKGROUND, INK, Collages, draw_collages
from dlops.courses.data.digits import load_digits
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.segmentation import FCN, SegmentationUNet, dice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=2, batch=10, lr=4e-3, weight_decay=1e-2, clip=1.0)
TRAINING, TEST = 4000, 300  # collages
CLASSES = BACKGROUND + 1
BACKGROUND_WEIGHT = 0.1  # nine pixels in ten are paper
DICE_WEIGHT = 0.2  # at 1 some seeds never learn: a batch of few digits says little about the overlap of most classes


def loss(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, weighted against the share of the background (as in equation 2 of the U-Net), and Dice."""
    logs = network(images).log_softmax(1)  # [N, K, H, W]
    targets = torch.zeros_like(logs).scatter_(1, classes[:, None], 1.0)
    weights = torch.where(classes == BACKGROUND, BACKGROUND_WEIGHT, 1.0)
    entropy = -(logs.gather(1, classes[:, None])[:, 0] * weights).sum() / weights.sum()
    return entropy + DICE_WEIGHT * (1 - dice(logs.exp(), targets).mean())


def intersections_over_unions(found: Tensor, classes: Tensor) -> Tensor:
    """[K], float64: of every class, the pixels that both call so over those that either does; NaN where there are none."""
    confusion = (classes * CLASSES + found).flatten().bincount(minlength=CLASSES**2).view(CLASSES, CLASSES).double()
    shared = confusion.diag()
    return shared / (confusion.sum(0) + confusion.sum(1) - shared)


def predict(session: Session, network: nn.Module, images: Tensor) -> Tensor:
    """The class of every pixel: [N, H, W]."""
    with torch.no_grad(), session.kernels():
        return torch.cat([network(*session.to_device(part)).argmax(1).cpu() for part in images.split(64)])


def shift_gap(network: nn.Module, image: Tensor, step: int, margin: int) -> float:
    """By how much the logits of an image moved by `step` differ from its logits moved by `step`; `margin` from the edges."""
    with torch.no_grad():
        still, moved = network(image[..., :-step, :-step]), network(image[..., step:, step:])
    first, last = margin, still.shape[-1] - margin - step
    there, here = slice(first + step, last + step), slice(first, last)
    return (still[..., there, there] - moved[..., here, here]).abs().max().item()


def disagreeing_pixels(collages: Collages) -> int:
    """Pixels whose ink and class disagree, and digits whose box holds no pixel of their class or is left empty by mistake."""
    wrong = ((collages.images[:, 0] >= INK) != (collages.classes != BACKGROUND)).sum()
    for slot in range(collages.labels.shape[1]):
        label, box = collages.labels[:, slot], collages.boxes[:, slot].long()
        places = torch.arange(collages.images.shape[-1])
        across = (places >= box[:, :1]) & (places < box[:, 2:3])
        down = (places >= box[:, 1:2]) & (places < box[:, 3:])
        inside = down[:, :, None] & across[:, None]
        found = (inside & (collages.classes == label[:, None, None])).flatten(1).any(1)
        wrong = wrong + (found != (label >= 0)).sum()
    return int(wrong)


class SegmentationOfCollages(Recipe):
    row = "B4"
    title = "Segmentation: U-Net and FCN"
    title_es = "Segmentación: U-Net y FCN"
    syllabi = ("S3",)
    source = "Ronneberger, Fischer, Brox 2015, section 2; Long, Shelhamer, Darrell 2015, section 4; Milletari et al. 2016 (Dice)"
    data = "collages of 64x64 pixels, 1 to 4 handwritten digits (scikit-learn) of random size and place; test digits held out"
    absent = (
        "Pascal VOC and the cell images of the papers are downloads: 62.2 mean IU (FCN-8s) and 0.92 IoU (U-Net, PhC-U373) "
        "cannot be checked here"
    )
    models = ("dlops.models.vision.segmentation",)
    kernels = ("conv",)
    goals = (Goal("mIoU", ">=", 0.80, "U-Net, the ten digit classes without the background; held-out digits"),)

    def run(self, session: Session) -> Outcome:
        counts = (40, 20) if session.quick else (TRAINING, TEST)
        training, test = (
            draw_collages(digits, count, session.generator(name))
            for digits, count, name in zip(load_digits(low=0.0), counts, ("training collages", "test collages"))
        )
        makes: dict[str, Callable[[], nn.Module]] = {
            "U-Net": lambda: SegmentationUNet.from_preset("small"),
            "FCN-8s": lambda: FCN.from_preset("small"),
        }
        found, networks = {}, {}
        for name, make in makes.items():
            network = session.build(name, make)
            networks[name] = session.fit(name, network, loss, (training.images, training.classes), PLAN).network
            found[name] = predict(session, networks[name], test.images)
        ious = {name: intersections_over_unions(classes, test.classes) for name, classes in found.items()}
        scores = {
            "mIoU": ious["U-Net"][:BACKGROUND].nanmean().item(),
            "mIoU, FCN-8s": ious["FCN-8s"][:BACKGROUND].nanmean().item(),
            "mIoU with the background": ious["U-Net"].nanmean().item(),
            "IoU, worst digit": ious["U-Net"][:BACKGROUND].nan_to_num(1.0).min().item(),
            "pixels right": (found["U-Net"] == test.classes).double().mean().item(),
        }

        unet = networks["U-Net"].double()
        side = (2 * unet.reach // unet.factor + 4) * unet.factor  # leaves two steps in the middle
        image = torch.rand(1, 1, side, side, dtype=torch.float64, generator=session.generator("shift"))
        shift = shift_gap(unet, image.to(session.device), unet.factor, unet.reach)
        masks = torch.zeros(len(test), CLASSES, *test.classes.shape[1:]).scatter_(1, test.classes[:, None], 1.0)
        checks = [
            Check("U-Net, image and logits moved by its stride, difference in float64", shift, "<=", 1e-10),
            Check("Dice of equal masks, difference from 1", (dice(masks, masks) - 1).abs().max().item(), "<=", 1e-6),
            Check("pixels and boxes that disagree with the labels of their collage", disagreeing_pixels(test), "<=", 0),
        ]
        return Outcome(scores, checks, lambda: _picture(test, found))

    def step(self, session: Session) -> Step:
        training, _ = load_digits(low=0.0)
        batch = draw_collages(training, 16, session.generator("step"))
        return Step(lambda: SegmentationUNet.from_preset("small"), loss, (batch.images, batch.classes), PLAN)


def _picture(test: Collages, found: dict[str, Tensor]) -> Figure:
    """Collages, the class of their pixels, and what each network says: a colour per digit."""
    from matplotlib import colormaps

    colours = torch.tensor(colormaps["tab10"].colors + ((1.0, 1.0, 1.0),))  # white paper
    made = pictures.figure(6.4, 3.5)
    grid = made.subplots(2 + len(found), 8)
    lines = {"image": None, "classes": test.classes, **found}
    for line, (name, classes) in zip(grid, lines.items()):
        for k, axes in enumerate(line):
            image = 1 - test.images[k].expand(3, -1, -1).permute(1, 2, 0) if classes is None else colours[classes[k]]
            axes.imshow(image.numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8)
    digits = [(digit, colours[digit].tolist()) for digit in range(BACKGROUND)]
    handles = [grid[0, 0].scatter([], [], color=colour, s=20, label=str(digit)) for digit, colour in digits]
    made.legend(handles=handles, loc="outside lower center", ncols=10, frameon=False, fontsize=8, handletextpad=0.1)
    return made
