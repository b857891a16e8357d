"""B6. Traffic signs: columns with different preprocessings, as those that first beat people at it, and a spatial transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlops.courses import pictures
from dlops.courses.data.signs import CLASSES, Signs, draw_signs
from dlops.courses.measures import accuracy
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.columns import Column, LocalContrast, MultiColumn, StretchContrast
from dlops.models.vision.spatial_transformer import SpatialTransformer, transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=5, batch=32, lr=3e-3, weight_decay=1e-2)
TRAINING, TEST = 150 * CLASSES, 40 * CLASSES  # signs


def make_column() -> Column:
    return Column.from_preset("small signs")


def make_transformed() -> nn.Module:
    """A column that straightens the sign first."""
    return nn.Sequential(SpatialTransformer.from_preset("small"), make_column())


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, on images moved by up to 2 pixels."""
    across, down = torch.randint(-2, 3, (2,)).tolist()
    return cross_entropy(network(images.roll((down, across), (2, 3))), labels)


def transformer_gaps(images: Tensor) -> tuple[float, float]:
    """Largest differences, in float64, of a fresh spatial transformer from the identity, and of a quarter turn by `transform`
    from `torch.rot90`. images: [N, C, side, side]."""
    images = images.double()
    fresh = SpatialTransformer(side=images.shape[-1], channels=images.shape[1]).double().to(images.device)
    turn = images.new_tensor([[0.0, -1, 0], [1, 0, 0]]).expand(len(images), 2, 3)  # reads (x, y) at (-y, x)
    with torch.no_grad():
        same = (fresh(images) - images).abs().max().item()
        turned = (transform(images, turn) - torch.rot90(images, 1, (2, 3))).abs().max().item()
    return same, turned


class DrawnSigns(Recipe):
    row = "B6"
    title = "Multi-column networks and spatial transformer: traffic signs"
    title_es = "Redes multicolumna y transformador espacial: señales de tráfico"
    syllabi = ("S1",)
    source = "Ciresan, Meier, Masci, Schmidhuber 2012; Jaderberg et al. 2015, section 3"
    data = "drawn signs of 32x32 pixels, 6 shapes x 7 glyphs + 1 = 43 classes; turned, blurred, noisy, badly lit, partly hidden"
    absent = (
        "the photographs of the result (GTSRB: 43 classes, 51,839 signs) are a download: its 99.46 % cannot be checked here; "
        "drawn signs show that the method works, not how well it reads a street"
    )
    models = ("dlops.models.vision.columns", "dlops.models.vision.spatial_transformer")
    kernels = ("conv",)
    goals = (Goal("accuracy", ">=", 0.98, "new signs, four columns together"),)

    def run(self, session: Session) -> Outcome:
        count = (640, 430) if session.quick else (TRAINING, TEST)
        training = draw_signs(count[0], session.generator("training signs"))
        test = draw_signs(count[1], session.generator("test signs"))
        kinds = {
            "stretched contrast": (make_column, StretchContrast()),
            "local contrast, 2 pixels": (make_column, LocalContrast(2.0)),
            "local contrast, 4 pixels": (make_column, LocalContrast(4.0)),
            "local contrast, 4 pixels, spatial transformer": (make_transformed, LocalContrast(4.0)),
        }
        columns, scores = [], {}
        for name, (make, prepare) in kinds.items():
            network = session.build(name, make)
            columns.append(session.fit(name, network, loss, (prepare(training.images), training.labels), PLAN).network)
            scores[f"accuracy, {name}"] = accuracy(session, columns[-1], prepare(test.images), test.labels)
        committee = MultiColumn(columns, [prepare for _, prepare in kinds.values()]).to(session.device)
        scores = {"accuracy": accuracy(session, committee, test.images, test.labels), **scores}

        same, turned = transformer_gaps(test.images[:8])
        (few,) = session.to_device(test.images[:8])
        with torch.no_grad(), session.kernels():
            gap = (committee.log_probabilities(few).exp().mean(0) - committee(few).exp()).abs().max().item()
        checks = [
            Check("fresh spatial transformer and the identity, difference in float64", same, "<=", 1e-12),
            Check("quarter turn by the sampler and rot90, difference in float64", turned, "<=", 1e-12),
            Check("committee and mean of its columns, difference", gap, "<=", 1e-5),
        ]
        return Outcome(scores, checks, lambda: _picture(session, test, committee))

    def step(self, session: Session) -> Step:
        batch = draw_signs(PLAN.batch, session.generator("step"))
        return Step(make_transformed, loss, (batch.images, batch.labels), PLAN)


def _picture(session: Session, test: Signs, committee: MultiColumn) -> Figure:
    """A test sign of every class, what the spatial transformer makes of some, and what the committee misreads."""
    across = 15
    images = test.images.to(session.device)
    with torch.no_grad(), session.kernels():
        read = torch.cat([committee(part).argmax(1) for part in images.split(256)]).cpu()
        few = images[:across]
        theta = committee.columns[-1][0].parameters_of(committee.preprocessings[-1](few))
        straight = transform(few, theta).cpu()
    one_each = test.labels.argsort(stable=True)[:: len(test) // CLASSES][:CLASSES]
    wrong = (read != test.labels).nonzero()[:across, 0]
    lines = [
        ("a test sign of every class", test.images[one_each]),
        ("other test signs", test.images[:across]),
        ("the same, as the spatial transformer hands them on", straight),
    ]
    if len(wrong):
        lines.append((f"misread: {int((read != test.labels).sum())} of {len(test)}", test.images[wrong]))
    return pictures.tiles([(title, (block + 1) / 2) for title, block in lines], across=across)
