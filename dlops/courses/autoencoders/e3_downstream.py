"""E3. A downstream task: the code of a frozen autoencoder, trained without labels, as the input of simple classifiers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.autoencoders._common import CODE, PCA, PLAN, reconstruction_loss, through, unit_digits
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

    from dlops.courses.session import Session

PER_CLASS = (1, 2, 5, 10, 20, 50)  # labels that the probes of the picture get


def neighbours() -> ClassifierMixin:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=5)


def linear_probe() -> ClassifierMixin:
    """Logistic regression on standardised features: coordinates of the code have no common scale."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def probe(classifier: ClassifierMixin, features: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> float:
    """Accuracy on the second of each pair, [M, F] and [M], after fitting the first, [N, F] and [N]."""
    classifier.fit(features[0].numpy(), labels[0].numpy())
    return float(classifier.score(features[1].numpy(), labels[1].numpy()))


def few_per_class(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` samples of every class."""
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == digit][:count] for digit in labels.unique().tolist()])


def company_gap(session: Session, network: Autoencoder, images: Tensor) -> float:
    """How much the code of an image depends on what else is in its batch: largest difference, in float64."""
    exact = copy.deepcopy(network).double()
    together = through(session, exact.encode, images.double())
    alone = torch.cat([through(session, exact.encode, image[None].double()) for image in images])
    return (together - alone).abs().max().item()


class Downstream(Recipe):
    row = "E3"
    title = "Downstream task: the frozen code and a probe"
    title_es = "Tarea posterior: el código congelado y una sonda"
    syllabi = ("S4",)
    source = "Hinton & Salakhutdinov 2006; probes: Alain & Bengio 2016"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), in [0, 1]; a fifth held out"
    models = ("dlops.models.autoencoders.autoencoder",)
    kernels = ("conv",)
    goals = (Goal("5-NN on the code", ">=", 0.945, "accuracy on held-out digits, code of 8, trained without labels"),)

    def run(self, session: Session) -> Outcome:
        training, test = unit_digits()
        network = session.build("autoencoder", lambda: Autoencoder.from_preset("digits", code=CODE))
        network = session.fit("autoencoder", network, reconstruction_loss, (training.images,), PLAN).network
        pca = PCA.fit(training.images, CODE)
        labels = training.labels, test.labels
        features = {
            "the code": tuple(through(session, network.encode, part.images) for part in (training, test)),
            "8 components": (pca.encode(training.images), pca.encode(test.images)),
            "64 pixels": (training.images.flatten(1), test.images.flatten(1)),
        }
        scores = {}
        for name, pair in features.items():
            scores[f"5-NN on {name}"] = probe(neighbours(), pair, labels)
            scores[f"linear probe on {name}"] = probe(linear_probe(), pair, labels)

        shuffled = training.labels[torch.randperm(len(training), generator=session.generator("shuffle"))]
        chance = probe(neighbours(), features["the code"], (shuffled, test.labels))
        checks = [
            # 0.1 is chance; 359 held-out digits scatter around it with a deviation of 0.016
            Check("5-NN on the code with shuffled labels", chance, "<=", 0.18),
            Check(
                "code in a batch and alone, largest difference",
                company_gap(session, network, test.images[:20]),
                "<=",
                1e-12,
            ),
        ]
        counts = PER_CLASS[:2] if session.quick else PER_CLASS
        lines = {f"linear probe on {name}": [] for name in features}
        for count in counts:
            chosen = few_per_class(training.labels, count, session.generator(f"{count} per class"))
            for name, (known, asked) in features.items():
                given = training.labels[chosen], test.labels
                lines[f"linear probe on {name}"].append(probe(linear_probe(), (known[chosen], asked), given))
        labelled = "labelled digits per class"
        return Outcome(
            scores, checks, lambda: pictures.curves(lines, labelled, "accuracy, held-out digits", xs=counts, log="x")
        )

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(lambda: Autoencoder.from_preset("digits"), reconstruction_loss, (training.images[:64],), PLAN)
