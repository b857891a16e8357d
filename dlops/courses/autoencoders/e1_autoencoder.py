"""E1. Autoencoders, dense and convolutional: a digit of 64 pixels through a code of 8 numbers and back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.courses import pictures
from dlops.courses.autoencoders._common import (
    CODE,
    PCA,
    PLAN,
    mean_squared_error,
    reconstruction_loss,
    through,
    unit_digits,
)
from dlops.courses.measures import precision_gap
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder, ConvAutoencoder

if TYPE_CHECKING:
    from dlops.courses.session import Session

FORMS = {"dense": Autoencoder, "convolutional": ConvAutoencoder}
PLANS = {"dense": PLAN, "convolutional": Plan(epochs=40, batch=64, lr=3e-3)}


def leak(session: Session, network: nn.Module, image: Tensor) -> float:
    """What passes by the code: singular value CODE + 1 of the Jacobian of the reconstruction of one image [1, ...] with
    respect to it, over the largest, in float64. All that comes out depends on CODE numbers, so the rank is at most CODE."""
    (copies,) = session.to_device(image.double().repeat(image.numel(), 1, 1, 1))
    exact = copy.deepcopy(network).double()
    with session.kernels():
        pixels = exact(copies.requires_grad_()).flatten(1)  # [D, D]; of copy k the gradient of pixel k is asked
        (jacobian,) = torch.autograd.grad(pixels.diagonal().sum(), copies)
    sizes = torch.linalg.svdvals(jacobian.flatten(1))
    return (sizes[CODE] / sizes[0]).item()


def adjoint_gap(session: Session, network: ConvAutoencoder) -> float:
    """A transposed convolution is the transpose of the convolution with its weight: <conv(a), b> = <a, transposed(b)>. Relative
    difference of the two, in float64, over the transposed convolutions of the decoder."""
    worst = 0.0
    layers = [layer for layer in network.decoder if isinstance(layer, nn.ConvTranspose2d)]
    for layer in layers:
        up = copy.deepcopy(layer).double().cpu()
        up.activation = None
        with torch.no_grad(), session.kernels():
            up.bias.zero_()
            b = torch.randn(2, up.in_channels, 4, 4, generator=session.generator("adjoint"), dtype=torch.float64)
            raised = up(b)
            a = torch.randn(raised.shape, generator=session.generator("adjoint"), dtype=torch.float64)
            lowered = nn.functional.conv2d(a, up.weight, stride=up.stride, padding=up.padding)
        worst = max(worst, ((a * raised).sum() - (lowered * b).sum()).abs().item() / (a.norm() * raised.norm()).item())
    return worst


class AutoencoderOnDigits(Recipe):
    row = "E1"
    title = "Autoencoders, dense and convolutional"
    title_es = "Autoencoders: codificador, código y decodificador"
    syllabi = ("S0", "S1", "S2", "S4")
    source = "Hinton & Salakhutdinov 2006, Science 313; Masci et al. 2011, ICANN"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), in [0, 1]; a fifth held out"
    absent = "the papers' MNIST, Olivetti faces and CIFAR-10 are downloads: their errors cannot be checked here"
    models = ("dlops.models.autoencoders.autoencoder",)
    kernels = ("conv",)
    goals = (
        Goal("MSE, dense", "<=", 0.0125, "held-out digits, per pixel, code of 8"),
        Goal("MSE, convolutional", "<=", 0.0125, "the same"),
        Goal("MSE over PCA's", "<=", 0.5, "the worse of the two networks, against 8 principal components"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = unit_digits()
        pca = PCA.fit(training.images, CODE)
        shown = test.images[:10]
        lines = [("held-out digits, 64 numbers", shown)]
        scores, checks = {"MSE, PCA": pca.error(test.images)}, []
        for form, kind in FORMS.items():
            network = session.build(form, lambda kind=kind: kind.from_preset("digits", code=CODE))
            network = session.fit(form, network, reconstruction_loss, (training.images,), PLANS[form]).network
            error = mean_squared_error(through(session, network, test.images), test.images)
            scores[f"MSE, {form}"] = error
            lines.append(
                (f"{form} autoencoder, through 8 numbers: error {error:.4f}", through(session, network, shown))
            )
            gap, beside = precision_gap(session, network, test.images[:64]), leak(session, network, test.images[:1])
            checks.append(Check(f"{form}: float64 and float32, largest difference", gap, "<=", 1e-4))
            checks.append(Check(f"{form}: Jacobian, what passes by the code", beside, "<=", 1e-12))
        checks.append(Check("<conv(a), b> - <a, transposed(b)>, relative", adjoint_gap(session, network), "<=", 1e-14))
        scores["MSE over PCA's"] = max(scores[f"MSE, {form}"] for form in FORMS) / scores["MSE, PCA"]
        flat = pca.decode(pca.encode(shown)).reshape(shown.shape)
        lines.append((f"PCA, through 8 numbers: error {scores['MSE, PCA']:.4f}", flat.float()))
        return Outcome(scores, checks, lambda: pictures.tiles(lines, low=0, high=1))

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(lambda: ConvAutoencoder.from_preset("digits"), reconstruction_loss, (training.images[:64],), PLAN)
