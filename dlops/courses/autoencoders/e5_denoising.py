"""E5. Denoising: an autoencoder that is shown noisy digits and must draw the clean ones, and a network without a code that
takes the noise out of photographs.

The best denoiser of all is known where the clean images are: E[x | noisy] over the training digits, equal to noisy + sigma^2
times the gradient of the log-density of noisy images (Miyasawa 1961; Vincent 2011, section 4). Nothing that sees only the
noisy image can have a smaller error on those digits.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.data.photographs import load_photographs
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.autoencoder import Autoencoder
from dlops.models.autoencoders.denoising import DnCNN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

SIGMA = 0.3  # of the noise on digits in [0, 1]
SIGMA_PHOTOGRAPH = 25 / 255
DIGITS_PLAN = Plan(epochs=150, batch=128, lr=4e-3)
PHOTOGRAPH_PLAN = Plan(epochs=5, batch=8, lr=3e-3)
SIDE = 32  # of a crop
TRAINED_COLUMNS = 400  # of 640; the rest of each photograph is held out


def digits_loss(network: nn.Module, images: Tensor) -> Tensor:
    """Squared error against the clean digits, from noise drawn anew in every step."""
    return mse_loss(network(images + SIGMA * torch.randn_like(images)), images)


def photograph_loss(network: nn.Module, crops: Tensor) -> Tensor:
    return mse_loss(network(crops + SIGMA_PHOTOGRAPH * torch.randn_like(crops)), crops)


def noisy(session: Session, name: str, images: Tensor, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=session.generator(name))


def crops(photographs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` squares [count, 3, SIDE, SIDE] at random places of photographs [P, 3, H, W], half of them mirrored."""
    which, mirrored = (
        torch.randint(len(photographs), (count,), generator=generator),
        torch.rand(count, generator=generator) < 0.5,
    )
    top, left = (torch.randint(size - SIDE + 1, (count,), generator=generator) for size in photographs.shape[2:])
    places = zip(which.tolist(), top.tolist(), left.tolist(), mirrored.tolist())
    cut = [(photographs[k, :, y : y + SIDE, x : x + SIDE], mirror) for k, y, x, mirror in places]
    return torch.stack([square.flip(2) if mirror else square for square, mirror in cut])


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], over all pixels."""
    return -10 * math.log10((a.double() - b.double()).square().mean().item())


def best_denoiser(seen: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """E[x | seen] where x is any of `clean` [M, D] with equal chance: seen [N, D] -> [N, D]."""
    return (-torch.cdist(seen, clean).square() / (2 * sigma**2)).softmax(1) @ clean


def score_gap(seen: Tensor, clean: Tensor, sigma: float = SIGMA) -> float:
    """Largest difference between the best denoiser of seen [N, D] and seen + sigma^2 * gradient of log p(seen)."""
    seen = seen.clone().requires_grad_()
    (-torch.cdist(seen, clean).square() / (2 * sigma**2)).logsumexp(1).sum().backward()
    return (best_denoiser(seen.detach(), clean, sigma) - (seen + sigma**2 * seen.grad).detach()).abs().max().item()


def moved_gap(session: Session, network: DnCNN, images: Tensor) -> float:
    """Largest difference in float64, away from the borders, between the outputs for two crops 5 rows and 3 columns apart."""
    edge, size = len(network.noise), 48  # one pixel per convolution sees past the border
    (images,) = session.to_device(images.double())
    network = copy.deepcopy(network).double()
    with torch.no_grad(), session.kernels():
        first, moved = network(images[..., :size, :size]), network(images[..., 5 : size + 5, 3 : size + 3])
    first = first[..., 5 + edge : size - edge, 3 + edge : size - edge]
    moved = moved[..., edge : size - 5 - edge, edge : size - 3 - edge]
    return (first - moved).abs().max().item()


def filtered(session: Session, shown: Tensor, grainy: Tensor, held_out: Tensor) -> float:
    """PSNR of a Gaussian filter, its width chosen on the training columns."""
    from scipy.ndimage import gaussian_filter

    def smooth(images: Tensor, width: float) -> Tensor:
        return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, width, width)))

    grainy_shown = noisy(session, "shown", shown, SIGMA_PHOTOGRAPH)
    width = max((0.6, 0.8, 1.0, 1.2), key=lambda width: psnr(smooth(grainy_shown, width), shown))
    return psnr(smooth(grainy, width), held_out)


class Denoising(Recipe):
    row = "E5"
    title = "Denoising"
    title_es = "Eliminación de ruido"
    syllabi = ("S4",)
    source = "Vincent et al. 2008, section 2.3; Zhang et al. 2017, section III"
    data = (
        "1,797 handwritten digits of 8x8 pixels, a fifth held out; two photographs (scikit-learn), of which the right three "
        "eighths are held out"
    )
    absent = "the papers' test images (MNIST variants, BSD68) are downloads: their tables cannot be checked here"
    models = ("dlops.models.autoencoders.autoencoder", "dlops.models.autoencoders.denoising")
    kernels = ("conv",)
    goals = (
        Goal("MSE on digits", "<=", 0.019, "held-out digits, noise 0.3, code of 16; noisy input 0.090"),
        Goal("PSNR gained on photographs, dB", ">=", 5.0, "held-out columns, noise 25/255"),
    )

    def run(self, session: Session) -> Outcome:
        training, test = (part.images for part in load_digits(low=0.0))
        coder = session.build("digits", lambda: Autoencoder.from_preset("digits", code=16))
        coder = session.fit("digits", coder, digits_loss, (training,), DIGITS_PLAN).network

        photographs = load_photographs()
        shown, held_out = photographs[..., :TRAINED_COLUMNS], photographs[..., TRAINED_COLUMNS:]
        squares = crops(shown, 96 if session.quick else 1000, session.generator("crops"))
        cleaner = session.build("photographs", lambda: DnCNN.from_preset("small"))
        cleaner = session.fit("photographs", cleaner, photograph_loss, (squares,), PHOTOGRAPH_PLAN).network

        seen, grainy = noisy(session, "test", test, SIGMA), noisy(session, "grain", held_out, SIGMA_PHOTOGRAPH)
        seen_training = noisy(session, "training", training, SIGMA)
        with torch.no_grad(), session.kernels():
            rebuilt, rebuilt_training, cleaned = (
                network(inputs.to(session.device)).cpu()
                for network, inputs in ((coder, seen), (coder, seen_training), (cleaner, grainy))
            )
        known = training.flatten(1).double()
        possible = mse_loss(best_denoiser(seen_training.flatten(1).double(), known, SIGMA), known).item()
        before = psnr(grainy, held_out)
        scores = {
            "MSE on digits": mse_loss(rebuilt, test).item(),
            "PSNR gained on photographs, dB": psnr(cleaned, held_out) - before,
            "MSE of noisy digits": mse_loss(seen, test).item(),
            "MSE on training digits": mse_loss(rebuilt_training, training).item(),
            "least possible MSE on training digits": possible,
            "PSNR gained by a Gaussian filter, dB": filtered(session, shown, grainy, held_out) - before,
        }
        margin = scores["MSE on training digits"] - possible
        checks = [
            Check("MSE on training digits less the least possible one", margin, ">=", 0.0),
            Check(
                "moved input, moved output: largest difference inside", moved_gap(session, cleaner, grainy), "<=", 1e-12
            ),
            Check(
                "best denoiser and score of noisy digits, largest difference",
                score_gap(seen[:20].flatten(1).double(), known),
                "<=",
                1e-9,
            ),
        ]
        digits = {"noise 0.3": seen[:12], "through a code of 16": rebuilt[:12], "clean": test[:12]}
        squares = {"noise 25/255": grainy, "cleaned": cleaned, "clean": held_out}
        return Outcome(scores, checks, lambda: _draw(digits, squares))

    def step(self, session: Session) -> Step:
        squares = crops(load_photographs()[..., :TRAINED_COLUMNS], PHOTOGRAPH_PLAN.batch, session.generator("crops"))
        return Step(lambda: DnCNN.from_preset("small"), photograph_loss, (squares,), PHOTOGRAPH_PLAN)


def _draw(digits: dict[str, Tensor], photographs: dict[str, Tensor]) -> Figure:
    """Digits above; below, squares of the held-out parts of both photographs, noisy, cleaned and clean."""
    made = pictures.figure(6.4, 5.0)
    above, below = made.subfigures(2, 1, height_ratios=[1, 1.6])
    for axes, (title, images) in zip(above.subplots(3, 1), digits.items()):
        axes.imshow(torch.cat(list(images[:, 0]), dim=1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9, loc="left", pad=2)
        axes.set_axis_off()
    grid = below.subplots(2, 3)
    for (title, images), column in zip(photographs.items(), grid.T):
        for axes, image in zip(column, images[..., 150:278, 20:212]):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        column[0].set_title(title, fontsize=9, loc="left", pad=2)
    return made
