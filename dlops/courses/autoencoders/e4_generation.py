"""E4. Generation: points of the latent space, decoded. A variational autoencoder's decode to digits, a plain one's less often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, pad

from dlops import nn
from dlops.courses import pictures
from dlops.courses.autoencoders._common import CODE, PLAN, reconstruction_loss, through, unit_digits
from dlops.courses.data.digits import CLASSES, Digits
from dlops.courses.measures import accuracy
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder
from dlops.models.autoencoders.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

VAE_PLAN = Plan(epochs=100, batch=64, lr=3e-3)
MAP_PLAN = Plan(epochs=30, batch=64, lr=3e-3)
JUDGE_PLAN = Plan(epochs=40, batch=64, lr=3e-3, weight_decay=1e-2)
DRAWN = 2000
SIDE = 10  # of the lattice
BETA = 0.5  # weight of the KL term; 1 is the bound itself, for pixels of 0 and 1: with grey levels it draws blurrier digits


def make_judge() -> nn.Module:
    widths = (64, 128, 64)
    hidden = [nn.Linear(a, b, activation="relu") for a, b in zip(widths, widths[1:])]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], CLASSES))


def judge_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, with a little noise on the pixels: the judge has no opinion on what it never saw otherwise."""
    noise = torch.randn(images.shape).to(images.device)
    return cross_entropy(network(images + 0.1 * noise), labels)


def vae_loss(network: VAE, images: Tensor) -> Tensor:
    return network.objective(images)


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last axis."""
    return torch.special.entr(probabilities).sum(-1)


def like_codes(noise: Tensor, codes: Tensor) -> Tensor:
    """Standard normal noise [N, k] moved to the mean and covariance of codes [M, k], in float64."""
    codes = codes.double()
    return codes.mean(0) + noise.double() @ torch.linalg.cholesky(torch.cov(codes.T)).T


def lattice(side: int) -> Tensor:
    """[side * side, 2]: a grid on the unit square through the inverse of the normal distribution function, so that every cell
    has the same share of the prior (Kingma & Welling, figure 4)."""
    ticks = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    return torch.cartesian_prod(-ticks, ticks).flip(1)  # first axis to the right, second one upwards


class Critic:
    """What is measured on a set of drawn digits [N, 1, 8, 8].

    entropy: mean entropy of the judge's answer, in nats; low where a drawing shows one digit and no blend of two.
    class entropy: of the mean answer, in bits; log2(10) = 3.32 where all ten digits are drawn equally often.
    distance: mean distance to the nearest training digit, over that of held-out digits; 0 for copies.
    spread: mean distance between two drawings, over that between two training digits; low for blurred or equal drawings.
    """

    def __init__(self, session: Session, judge: nn.Module, training: Digits, test: Digits) -> None:
        self._session, self._judge = session, judge
        self._training = training.images.flatten(1)
        self._real_distance = self._distance(test.images)
        self._real_spread = self._spread(training.images)

    def answers(self, images: Tensor) -> Tensor:
        return through(self._session, self._judge, images).double().softmax(1)

    def __call__(self, images: Tensor) -> dict[str, float]:
        answers = self.answers(images)
        return {
            "entropy": entropy(answers).mean().item(),
            "class entropy": entropy(answers.mean(0)).item() / math.log(2),
            "distance": self._distance(images) / self._real_distance,
            "spread": self._spread(images) / self._real_spread,
        }

    def _distance(self, images: Tensor) -> float:
        return torch.cdist(images.flatten(1), self._training).amin(1).mean().item()

    def _spread(self, images: Tensor) -> float:
        return torch.pdist(images[:500].flatten(1)).mean().item()


def draw(map_: Tensor, drawings: Mapping[str, Tensor]) -> Figure:
    """The lattice on the left, 5 x 5 of each set of drawings [25, 1, 8, 8] on the right."""
    made = pictures.figure(6.4, 3.6)
    left, right = made.subfigures(1, 2, width_ratios=(1.1, 1))
    panels = [(left.subplots(), "the plane of a VAE with 2 numbers, decoded", map_, SIDE)]
    grid = right.subplots(2, 2).flatten()
    panels += [(axes, title, images, 5) for axes, (title, images) in zip(grid, drawings.items())]
    for axes, title, images, across in panels:
        spaced = pad(images[:, 0], (0, 1, 0, 1))  # [N, 9, 9]
        sheet = spaced.unflatten(0, (-1, across)).transpose(1, 2).flatten(2).flatten(0, 1)
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=8, loc="left", pad=2)
        axes.set_axis_off()
    return made


class Generation(Recipe):
    row = "E4"
    title = "Generation from the latent space"
    title_es = "Generación de instancias desde el espacio latente"
    syllabi = ("S4",)
    source = "Kingma & Welling 2014, section 5 and figure 4"
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn), in [0, 1]; a fifth held out"
    absent = "the paper's MNIST and Frey faces are downloads: the pictures here are of smaller digits"
    models = ("dlops.models.autoencoders.vae", "dlops.models.autoencoders.autoencoder")
    kernels = ("conv",)
    goals = (
        Goal("entropy, VAE over AE", "<=", 0.7, "entropy of the judge's answers; both decode draws from N(0, I)"),
        Goal("entropy, VAE over AE, fitted", "<=", 0.7, "the AE draws from a normal of its codes' mean and covariance"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = unit_digits()
        judge = session.build("judge", make_judge)
        judge = session.fit("judge", judge, judge_loss, (training.images, training.labels), JUDGE_PLAN).network
        plain = session.build("autoencoder", lambda: Autoencoder.from_preset("digits", code=CODE))
        plain = session.fit("autoencoder", plain, reconstruction_loss, (training.images,), PLAN).network
        vae = session.build("vae", lambda: VAE.from_preset("digits", code=CODE, beta=BETA))
        vae = session.fit("vae", vae, vae_loss, (training.images,), VAE_PLAN).network
        plane = session.build("plane", lambda: VAE.from_preset("digits", code=2))
        plane = session.fit("plane", plane, vae_loss, (training.images,), MAP_PLAN).network

        noise = torch.randn(DRAWN, CODE, generator=session.generator("draws"))  # the same for all three
        codes = through(session, plain.encode, training.images)
        drawings = {
            "VAE": through(session, vae.decode, noise),
            "AE": through(session, plain.decode, noise),
            # what a plain autoencoder can still be helped with: draws of the mean and covariance of its codes
            "AE, fitted": through(session, plain.decode, like_codes(noise, codes).float()),
        }
        critic = Critic(session, judge, training, test)
        found = {name: critic(images) for name, images in {**drawings, "held-out digits": test.images}.items()}
        scores = {"entropy, VAE over AE": found["VAE"]["entropy"] / found["AE"]["entropy"]}
        scores["entropy, VAE over AE, fitted"] = found["VAE"]["entropy"] / found["AE, fitted"]["entropy"]
        scores |= {f"{measure}, {name}": value for name, of in found.items() for measure, value in of.items()}
        scores["accuracy of the judge"] = accuracy(session, judge, test.images, test.labels)

        answers = critic.answers(drawings["VAE"])
        information = (entropy(answers.mean(0)) - entropy(answers).mean()).item()
        many = torch.randn(100_000, CODE, generator=session.generator("many"), dtype=torch.float64)
        placed, wanted = torch.cov(like_codes(many, codes).T), torch.cov(codes.double().T)
        apart = ((placed - wanted).norm() / wanted.norm()).item()
        sure = entropy(one_hot(answers.argmax(1), CLASSES).double()).max().item()
        even = (entropy(torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)) - math.log(CLASSES)).abs().item()
        checks = [
            Check("covariance of the draws and of the codes, relative difference", apart, "<=", 0.05),
            Check("entropy of the mean answer less mean entropy (Jensen)", information, ">=", -1e-12),
            Check("entropy of a sure answer, and of an even one less log 10", sure + even, "<=", 1e-12),
        ]
        shown = {f"{name}: {found[name]['entropy']:.2f} nats": images[:25] for name, images in drawings.items()}
        shown["held-out digits"] = test.images[:25]
        grid = through(session, plane.decode, lattice(SIDE).float())
        return Outcome(scores, checks, lambda: draw(grid, shown))

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(
            lambda: VAE.from_preset("digits", code=CODE, beta=BETA), vae_loss, (training.images[:64],), VAE_PLAN
        )
