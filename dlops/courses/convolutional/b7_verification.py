"""B7. Verification: do two images show the same digit? Asked of digits 7, 8 and 9, of which training has seen none.

The network learns distances on the digits 0 to 6 with four losses. That is few identities (the paper has 8,192 faces), so
every digit gives six: as it is and turned by a quarter either way, each mirrored or not. The half turn is left out: it
would make a 6 a 9, and 9 must stay unseen. The loss that counts, triplet, and the plan were chosen on 0 to 6 alone, by
leaving three of those out in turn; the other losses are told beside it. So are two baselines: the network before training,
and the cosine of the raw pixels. At 8x8 pixels and with seven digits to learn from, what is learned is not far above either:
verification pays where identities are many and poses differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, normalize

from dlops.courses import pictures
from dlops.courses.convolutional import _verification as protocol
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import auroc
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.embedding import EmbeddingNet
from dlops.models.vision.metric_losses import ArcFace, contrastive, sup_con, triplet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=3, batch=64, lr=2e-3, weight_decay=1e-2)
SEEN = 7  # digits 0 to 6 are trained on, 7 to 9 asked about
TURNS = 6  # orientations of a digit, each of which is a class
FEATURES = 32
SCALE = 16.0  # of ArcFace: the paper's 64 is for ten thousand classes and more


def enlarge(images: Tensor) -> Tensor:
    """[N, 1, 8, 8] -> [N, 1, 32, 32], bilinear."""
    return interpolate(images, scale_factor=4, mode="bilinear")


def turned(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[6 N, 1, H, W], [6 N]: upright, turned by a quarter left and right, and these mirrored; a class for each."""
    upright = [images, images.rot90(1, (2, 3)), images.rot90(-1, (2, 3))]
    every = upright + [image.flip(3) for image in upright]
    return torch.cat(every), torch.cat([labels * TURNS + k for k in range(TURNS)])


def warped(images: Tensor) -> Tensor:
    """Every image rotated by up to 20 degrees, moved by up to 3 of its 32 pixels, sheared and scaled by up to a quarter."""
    n = len(images)
    angle, shear, scale, down, across = (2 * torch.rand(5, n) - 1) * torch.tensor([0.35, 0.25, 0.25, 0.2, 0.2])[:, None]
    rows = [(1 + scale) * angle.cos(), shear - angle.sin(), across, angle.sin(), (1 + scale) * angle.cos(), down]
    move = torch.stack(rows, dim=1).view(n, 2, 3).to(images)
    return grid_sample(images, affine_grid(move, list(images.shape), align_corners=False), align_corners=False)


class Verifier(nn.Module):
    """An embedding network and what its loss must learn besides: the centres of ArcFace."""

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = EmbeddingNet.from_preset("digits", features=FEATURES)
        self.criterion = criterion

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding(images)


def loss(network: Verifier, images: Tensor, labels: Tensor) -> Tensor:
    return network.criterion(network(warped(images)), labels)


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "triplet": lambda: triplet,
    "contrastive": lambda: contrastive,
    "SupCon": lambda: sup_con,
    "ArcFace": lambda: ArcFace(FEATURES, SEEN * TURNS, scale=SCALE),
}


class Verification(Recipe):
    row = "B7"
    title = "Verification: contrastive, triplet, SupCon, ArcFace"
    title_es = "Verificación: pérdidas contrastiva, triplete, SupCon y ArcFace"
    syllabi = ("S1",)
    source = "Sun 2014; Hadsell 2006, eq. 4; Schroff 2015, eq. 3; Khosla 2020, eq. 2; Deng 2019, eq. 3 (each et al.)"
    data = "handwritten digits (scikit-learn), enlarged four times: trained on 0 to 6, verified on all pairs of 7, 8 and 9"
    absent = "no face data ships in a package: the 99.15 % on Labeled Faces in the Wild (human: 99.20 %) cannot be checked here"
    models = ("dlops.models.vision.embedding", "dlops.models.vision.metric_losses")
    kernels = ("conv",)
    seconds = 40
    goals = (Goal("AUROC", ">=", 0.75, "pairs of digits of classes that training has not seen, triplet loss"),)

    def run(self, session: Session) -> Outcome:
        images, labels = (part[:: 8 if session.quick else 1] for part in _digits())
        seen = labels < SEEN
        images, unseen, asked = turned(enlarge(images[seen]), labels[seen]), enlarge(images[~seen]), labels[~seen]
        scores, found = {}, {"raw pixels": protocol.pairs(normalize(unseen.flatten(1), dim=1), asked)}
        for name, make in LOSSES.items():
            network = session.build(name, lambda make=make: Verifier(make()))
            if name == "triplet":
                scores["AUROC, untrained network"] = auroc(*protocol.pairs(embed(session, network, unseen), asked))
            session.fit(name, network, loss, images, PLAN)
            found[name] = protocol.pairs(embed(session, network, unseen), asked)
            scores["AUROC" if name == "triplet" else f"AUROC, {name}"] = auroc(*found[name])
        scores["EER"] = protocol.equal_error_rate(*found["triplet"])
        scores["AUROC, raw pixels"] = auroc(*found["raw pixels"])
        length = (embed(session, network, unseen).norm(dim=1) - 1).abs().max().item()
        checks = [*invariants(session, *found["triplet"]), Check("length of an embedding, from 1", length, "<=", 1e-5)]
        return Outcome(scores, checks, partial(draw, found))

    def step(self, session: Session) -> Step:
        images, labels = _digits()
        return Step(lambda: Verifier(triplet), loss, (enlarge(images[:64]), labels[:64]), PLAN)


def _digits() -> tuple[Tensor, Tensor]:
    """All of them: what is held out here is classes."""
    training, test = load_digits(low=0.0)
    return torch.cat([training.images, test.images]), torch.cat([training.labels, test.labels])


def embed(session: Session, network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), session.kernels():
        return network(*session.to_device(images)).cpu()


def invariants(session: Session, cosine: Tensor, same: Tensor) -> list[Check]:
    """Of the losses, in float64 on points at random, and of the area under the curve that was measured."""
    from sklearn.metrics import roc_auc_score

    generator = session.generator("invariants")
    points = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (24,), generator=generator)
    loops = protocol.sup_con_by_loops(points, labels, 0.1)
    arc = ArcFace(5, 4, scale=SCALE, margin=0.0).double()
    arc.weight.data.copy_(torch.randn(4, 5, generator=generator, dtype=torch.float64))
    plain = cross_entropy(SCALE * normalize(points, dim=1) @ normalize(arc.weight, dim=1).T, labels)
    points = normalize(points, dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(triplet(points, labels, 0.2), points)
    by_hand = protocol.triplet_gradient_by_hand(points.detach(), labels, 0.2)
    differences = {
        "SupCon and its definition by loops, difference": sup_con(points.detach(), labels, 0.1) - loops,
        "ArcFace without margin and cross-entropy of scaled cosines, difference": arc(points.detach(), labels) - plain,
        "triplet gradient and the one by hand, largest difference": gradient - by_hand,
        "AUROC and scikit-learn's, difference": torch.tensor(auroc(cosine, same) - roc_auc_score(same, cosine)),
    }
    return [Check(name, value.abs().max().item(), "<=", 1e-12) for name, value in differences.items()]


def draw(found: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    made = pictures.figure(6.4, 3.0)
    left, right = made.subplots(1, 2)
    cosine, same = found["triplet"]
    for kind, name, color in ((same, "same digit", "C0"), (~same, "different", "C1")):
        left.hist(cosine[kind].numpy(), bins=60, range=(-0.5, 1), density=True, alpha=0.6, color=color, label=name)
    left.set(xlabel="cosine of a pair, triplet loss", yticks=[])
    left.set_title("pairs of the unseen digits 7, 8, 9", fontsize=9, loc="left")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    for name, scored in found.items():
        false, true = (rate[:: max(len(rate) // 500, 1)].numpy() for rate in protocol.rates(*scored))
        line = dict(color="0.5", linestyle="--") if name == "raw pixels" else {}
        right.plot(false, true, linewidth=1.2, label=f"{name} {auroc(*scored):.3f}", **line)
    right.plot([0, 1], [1, 0], color="0.85", linewidth=0.8, zorder=0)  # where it crosses, the two errors are equal
    right.set(xlabel="false acceptances", ylabel="true acceptances", aspect="equal")
    right.set_title("ROC and the area under it", fontsize=9, loc="left")
    right.legend(frameon=False, fontsize=7, loc="lower right")
    return made
