"""A6. Two hundred digits, a fifth of them mislabelled, and a network that can learn them by heart: dropout, weight decay,
batch norm, augmentation.

The mislabelled ones are what there is to overfit, and dropout gains points. Two hundred rightly labelled digits do a network
of this size little harm: of some twenty settings of rate, width, initialisation and learning rate none gained more than
0.4 points by dropout. That gain is told beside.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.measures import accuracy
from dlops.courses.measures import classification_loss as loss
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

PLAN = Plan(epochs=50, batch=40, lr=3e-3)
DECAY = Plan(epochs=50, batch=40, lr=3e-3, weight_decay=1.0)
IMAGES, SUBSETS = 200, 5
NETWORK: dict[str, Any] = dict(inputs=64, outputs=10, hidden=(256, 256), init="he")
WRONG = 0.2  # share of the training digits whose label is replaced
CLEAN = "right labels"


def mislabel(labels: Tensor, generator: torch.Generator) -> Tensor:
    """`WRONG` of the labels [N] become another digit, each of the nine with the same probability."""
    chosen = torch.randperm(len(labels), generator=generator)[: round(WRONG * len(labels))]
    other = torch.randint(1, 10, (len(chosen),), generator=generator)
    return labels.index_copy(0, chosen, (labels[chosen] + other) % 10)


def shifted_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Augmentation: the batch shifted by up to half a pixel, along one axis; between pixels it is linear."""
    axis, step = int(torch.randint(2, 4, ())), 2 * int(torch.randint(2, ())) - 1
    return loss(network, images.lerp(images.roll(step, axis), 0.5 * torch.rand(()).item()), labels)


#: name -> (what differs in the network, loss, plan)
FORMS: dict[str, tuple[dict[str, Any], Any, Plan]] = {
    "none": ({}, loss, PLAN),
    "dropout": ({"dropout": 0.5}, loss, PLAN),
    "weight decay": ({}, loss, DECAY),
    "batch norm": ({"norm": "batch"}, loss, PLAN),
    "augmentation": ({}, shifted_loss, PLAN),
}


def dropout_as_ridge(generator: torch.Generator, masks: int = 100_000) -> float:
    """Dropout on the inputs of a linear model adds p / (1 - p) sum_j (w_j x_j)^2 to its expected squared error
    (Srivastava et al. 2014, section 9.1): how many standard errors the mean over `masks` masks is away from that."""
    weight, x = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    p, target = 0.3, 1.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        dropped = nn.Dropout(p)(x.expand(masks, 8))
    errors = (dropped @ weight - target).square()
    expected = (x @ weight - target).square() + p / (1 - p) * (x * weight).square().sum()
    return ((errors.mean() - expected).abs() / (errors.std() / math.sqrt(masks))).item()


def mask_gap(session: Session, images: Tensor) -> float:
    """Largest difference between two passes of a network that trains with dropout, from the same seed; infinite where
    another seed gives the same output as well."""
    network = session.build("masks", lambda: MLP(**NETWORK, dropout=0.5))
    outputs = []
    (images,) = session.to_device(images)
    with torch.no_grad(), session.kernels():
        for seed in (1, 1, 2):
            devices = [] if session.device == "cpu" else [images.device]
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                outputs.append(network(images))
    if torch.equal(outputs[0], outputs[2]):
        return math.inf
    return (outputs[0] - outputs[1]).abs().max().item()


def decay_gap(images: Tensor, labels: Tensor, lr: float = 0.01, decay: float = 0.1) -> float:
    """AdamW decays apart from the gradient (Loshchilov & Hutter 2019): after one step its parameters are those of Adam less
    lr * decay * what they were. The largest difference from that, float64."""
    network = MLP(64, 10, hidden=(16,)).double()
    start = [parameter.detach().clone() for parameter in network.parameters()]
    ends = []
    for weight_decay in (0.0, decay):
        twin = copy.deepcopy(network)
        optimizer = torch.optim.AdamW(twin.parameters(), lr=lr, weight_decay=weight_decay)
        loss(twin, images.double(), labels).backward()
        optimizer.step()
        ends.append([parameter.detach() for parameter in twin.parameters()])
    return max((b - (a - lr * decay * old)).abs().max().item() for a, b, old in zip(*ends, start))


def fold(network: MLP) -> MLP:
    """The network without its batch norms, which in evaluation are affine: W' = s W, b' = s (b - m) + beta, with
    s = gamma / sqrt(v + eps), m and v the running mean and variance (Ioffe & Szegedy 2015, algorithm 2, line 11)."""
    first, *_ = sizes = [network.hidden[0].in_features, *(layer.out_features for layer in network.hidden)]
    folded = MLP(first, network.output.out_features, sizes[1:], network.activation).to(network.output.weight.dtype)
    with torch.no_grad():
        for layer, norm, target in zip(network.hidden, network.norms, folded.hidden):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            target.weight.copy_(scale[:, None] * layer.weight)
            target.bias.copy_(scale * (layer.bias - norm.running_mean) + norm.bias)
        folded.output.load_state_dict(network.output.state_dict())
    return folded.eval()


def fold_gap(images: Tensor) -> float:
    """Largest difference between a network with batch norms, after it has seen `images`, and its folded form, float64."""
    network = MLP(64, 10, hidden=(32, 32), norm="batch").double()
    with torch.no_grad():
        for batch in images.double().split(16):
            network(batch)
        for norm in network.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-1, 1)
        return (network.eval()(images.double()) - fold(network)(images.double())).abs().max().item()


class Regularisation(Recipe):
    row = "A6"
    title = "Regularisation"
    title_es = "Regularización"
    syllabi = ("S0", "S1")
    source = "Srivastava et al. 2014, sections 4 and 9.1; Loshchilov & Hutter 2019; Ioffe & Szegedy 2015, algorithm 2"
    data = "200 handwritten digits of 8x8 pixels (scikit-learn), a fifth mislabelled; five draws; the other 1,597 judge"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    goals = (Goal("gain", ">=", 0.01, "accuracy with dropout less accuracy without, mean of five draws of 200 digits"),)

    def run(self, session: Session) -> Outcome:
        training, test = load_digits()
        found: dict[str, list[float]] = {}
        for k in range(1 if session.quick else SUBSETS):
            chosen = torch.randperm(len(training), generator=session.generator(f"draw {k}"))[:IMAGES]
            images, right_labels = training.images[chosen], training.labels[chosen]
            labels = mislabel(right_labels, session.generator(f"labels {k}"))
            rest = torch.ones(len(training), dtype=torch.bool).index_fill(0, chosen, False)
            unseen = torch.cat([test.images, training.images[rest]]), torch.cat([test.labels, training.labels[rest]])
            for name, (changes, objective, plan) in FORMS.items():
                kinds = {name: labels}
                if name in ("none", "dropout"):
                    kinds[f"{name}, {CLEAN}"] = right_labels
                for label, targets in kinds.items():
                    # the same start for all, as far as their parameters are the same
                    network = session.build(f"network {k}", lambda changes=changes: MLP(**NETWORK, **changes))
                    fitted = session.fit(f"{label} {k}", network, objective, (images, targets), plan)
                    found.setdefault(label, []).append(accuracy(session, fitted.network, *unseen))
        mean = {name: math.fsum(values) / len(values) for name, values in found.items()}
        scores = {"gain": mean["dropout"] - mean["none"]}
        scores[f"gain, {CLEAN}"] = mean[f"dropout, {CLEAN}"] - mean[f"none, {CLEAN}"]
        scores.update(mean)
        batch = training.images[:64], training.labels[:64]
        ridge = dropout_as_ridge(session.generator("ridge"))
        checks = [
            Check("dropout as a ridge penalty, standard errors from the closed form", ridge, "<=", 5),
            Check("same seed, same dropout mask: largest difference", mask_gap(session, training.images[:8]), "<=", 0),
            Check("AdamW's step, largest difference from the decoupled decay", decay_gap(*batch), "<=", 1e-15),
            Check("batch norm in evaluation, largest difference from the folded form", fold_gap(batch[0]), "<=", 1e-12),
        ]
        return Outcome(scores, checks, lambda: _draw(found))

    def step(self, session: Session) -> Step:
        training, _ = load_digits()
        make = lambda: MLP(**NETWORK, dropout=0.5)  # noqa: E731
        return Step(make, loss, (training.images[:40], training.labels[:40]), PLAN)


def _draw(found: dict[str, list[float]]) -> Figure:
    made = pictures.figure(6.4, 3)
    axes = made.subplots()
    for y, (name, values) in enumerate(reversed(found.items())):
        axes.barh(y, sum(values) / len(values), color="C1" if CLEAN in name else "C0", alpha=0.5)
        axes.scatter(values, [y] * len(values), s=8, color="k", zorder=2)
    axes.set_yticks(range(len(found)), list(reversed(found)), fontsize=8)
    low = min(min(values) for values in found.values())
    axes.set_xlim(max(low - 0.02, 0), min(max(max(values) for values in found.values()) + 0.01, 1))
    axes.set_xlabel("accuracy on the other 1,597 digits, five draws of 200 for training, a fifth mislabelled", fontsize=8)
    axes.tick_params(labelsize=8)
    return made
