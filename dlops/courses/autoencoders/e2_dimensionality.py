"""E2. Fewer dimensions: a linear autoencoder finds the space of principal component analysis, a non-linear one a better map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.courses import pictures
from dlops.courses.autoencoders._common import (
    CODE,
    PCA,
    PLAN,
    mean_squared_error,
    principal_angles,
    reconstruction_loss,
    through,
    unit_digits,
)
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from dlops.courses.session import Session


def quasi_newton(parameters: list[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """L-BFGS with line search. The loss has no local minima but is nearly flat towards the ninth component, whose variance
    is 0.9 of the eighth's: after 3,000 full-batch steps Adam is still a radian away."""
    return torch.optim.LBFGS(
        parameters, lr, max_iter=50, max_eval=1000, history_size=100, tolerance_grad=0, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip


LINEAR = Plan(epochs=20, batch=10_000, lr=1.0, optimizer=quasi_newton, schedule="constant")  # full batch, 1,000 steps


def linear_autoencoder() -> Autoencoder:
    """In float64: in float32 the loss is lost in rounding while the angle is still above 5e-3."""
    return Autoencoder.from_preset("linear", code=CODE).double()


def set_to(network: Autoencoder, pca: PCA) -> None:
    """Principal components as the weights of a linear autoencoder."""
    encoder, decoder = network.encoder[-1], network.decoder[-1]
    with torch.no_grad():
        encoder.weight.copy_(pca.components.T)
        encoder.bias.copy_(-pca.mean @ pca.components)
        decoder.weight.copy_(pca.components)
        decoder.bias.copy_(pca.mean)


def loss_and_slope(session: Session, network: Autoencoder, images: Tensor) -> tuple[float, float]:
    """The loss, and the length of its gradient."""
    network.zero_grad()
    with session.kernels():
        loss = reconstruction_loss(network, *session.to_device(images))
        loss.backward()
    slope = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm().item()
    network.zero_grad()
    return loss.item(), slope


def two_maps(maps: Mapping[str, Tensor], labels: Tensor) -> Figure:
    """Points [N, 2] per title, side by side, in a colour per digit."""
    made = pictures.figure(6.4, 3.4)
    panels = made.subplots(1, len(maps))
    for axes, (title, points) in zip(panels, maps.items()):
        for digit in range(10):
            chosen = points[labels == digit]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=7, color=f"C{digit}", label=str(digit), linewidths=0)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(xticks=[], yticks=[])
    names = panels[0].get_legend_handles_labels()
    made.legend(*names, loc="outside right center", frameon=False, fontsize=8, markerscale=2)
    return made


class DimensionalityReduction(Recipe):
    row = "E2"
    title = "Dimensionality reduction, and the linear autoencoder that is PCA"
    title_es = "Reducción de dimensionalidad, y el autoencoder lineal que equivale a PCA"
    syllabi = ("S4",)
    source = "Baldi & Hornik 1989, Neural Networks 2; Hinton & Salakhutdinov 2006, figure 3"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), in [0, 1]; a fifth held out"
    absent = "the paper's maps show MNIST, which is a download; these digits are smaller and fewer"
    models = ("dlops.models.autoencoders.autoencoder",)
    kernels = ("conv",)
    goals = (
        Goal(
            "angle to PCA", "<=", 1e-2, "largest principal angle in radians, decoder of a linear autoencoder, code of 8"
        ),
    )

    def run(self, session: Session) -> Outcome:
        training, test = unit_digits()
        images = training.images.double()
        pca = PCA.fit(images, CODE)
        linear = session.build("linear", linear_autoencoder)
        _, untrained_slope = loss_and_slope(session, linear, images)
        linear = session.fit("linear", linear, reconstruction_loss, (images,), LINEAR).network
        decoder = linear.decoder[-1].weight.detach().cpu()  # [64, 8]
        reached, _ = loss_and_slope(session, linear, images)
        error = mean_squared_error(through(session, linear, test.images.double()), test.images)
        best = session.build("principal", linear_autoencoder)
        set_to(best, pca)
        least, slope = loss_and_slope(session, best, images)

        flat = session.build("map", lambda: Autoencoder.from_preset("digits", code=2))
        flat = session.fit("map", flat, reconstruction_loss, (training.images,), PLAN).network
        axes = PCA.fit(images, 2)
        scores = {
            "angle to PCA": principal_angles(decoder, pca.components)[-1].item(),
            "MSE, 8 numbers, linear autoencoder": error,
            "MSE, 8 numbers, PCA": pca.error(test.images),
            "MSE, 2 numbers, autoencoder": mean_squared_error(through(session, flat, test.images), test.images),
            "MSE, 2 numbers, PCA": axes.error(test.images),
        }
        checks = [
            Check(
                "linear autoencoder with PCA's weights, loss less PCA's error",
                abs(least - pca.error(images)),
                "<=",
                1e-12,
            ),
            Check("slope of the loss there, of that untrained", slope / untrained_slope, "<=", 1e-10),
            Check("trained linear autoencoder, loss less PCA's error", reached - least, ">=", -1e-12),
        ]
        errors = scores["MSE, 2 numbers, autoencoder"], scores["MSE, 2 numbers, PCA"]
        maps = {
            f"autoencoder, 2 numbers: error {errors[0]:.3f}": through(session, flat.encode, test.images),
            f"PCA, 2 numbers: error {errors[1]:.3f}": axes.encode(test.images),
        }
        return Outcome(scores, checks, lambda: two_maps(maps, test.labels))

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(lambda: Autoencoder.from_preset("digits"), reconstruction_loss, (training.images[:64],), PLAN)
