"""B9. The filters of image processing are convolutions with weights that somebody chose; one of them is learned back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dlops.courses import pictures
from dlops.courses.data.photographs import load_photographs
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.vision.filters import Filter, Separable, gaussian, laplacian, sobel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

SCIPY = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}
SIGMA = 2.0
PLAN = Plan(epochs=12, batch=16, lr=0.1, optimizer="adam")
SIDE = 32


def ours(name: str, mode: str) -> nn.Module:
    """The filter of that name; "gaussian" is the separable one."""
    if name == "gaussian":
        return Separable(gaussian(SIGMA), padding_mode=mode)
    return Filter.from_preset(name, padding_mode=mode)


def theirs(name: str, images: Tensor, mode: str) -> Tensor:
    """scipy.ndimage's function of that name, where it has one, or its correlation with the same kernel; in float64."""
    from scipy import ndimage

    named = {
        "gaussian": lambda plane: ndimage.gaussian_filter(plane, SIGMA, mode=mode),
        "box": lambda plane: ndimage.uniform_filter(plane, 5, mode=mode),
        "sobel_x": lambda plane: ndimage.sobel(plane, 1, mode=mode),
        "sobel_y": lambda plane: ndimage.sobel(plane, 0, mode=mode),
        "laplacian": lambda plane: ndimage.laplace(plane, mode=mode),
    }

    def correlate(plane):
        preset = Filter.PRESETS[name]
        step = preset.get("dilation", 1)
        kernel = preset["kernel"]
        spread = kernel.new_zeros([(k - 1) * step + 1 for k in kernel.shape])  # scipy has no dilation: zeros between
        spread[::step, ::step] = kernel
        return ndimage.correlate(plane, spread.numpy(), mode=mode)

    function = named.get(name, correlate)
    planes = [torch.from_numpy(function(plane.numpy())) for plane in images.double().flatten(0, 1)]
    return torch.stack(planes).view(images.shape)


def differences(session: Session, images: Tensor) -> Iterator[tuple[str, str, float]]:
    """(filter, padding mode, largest difference from scipy.ndimage), in float32."""
    (inputs,) = session.to_device(images)
    for mode, scipys in SCIPY.items():
        for name in ("gaussian", *Filter.PRESETS):
            made = session.build(name, lambda name=name, mode=mode: ours(name, mode))
            with torch.no_grad(), session.kernels():
                filtered = made(inputs).cpu().double()
            yield name, mode, (filtered - theirs(name, images, scipys)).abs().max().item()


def spectral_error(image: Tensor) -> float:
    """Circular correlation against the product of the Fourier transforms, in float64, with a kernel that has no symmetry."""
    kernel = torch.arange(15, dtype=torch.float64).view(3, 5).sin()
    image = image.double()
    spread = torch.zeros(image.shape[-2:], dtype=torch.float64, device=image.device)
    spread[:3, :5] = kernel
    spread = spread.roll((-1, -2), (0, 1))  # its centre at the origin
    expected = torch.fft.irfft2(torch.fft.rfft2(image) * torch.fft.rfft2(spread).conj(), s=image.shape[-2:])
    made = Filter(kernel, padding_mode="circular", dtype=torch.float64).to(image.device)
    return (made(image) - expected).abs().max().item()


def derivative_error(device: str) -> float:
    """On the surface z = 3 x + 2 y + x^2 + y^2: Sobel must give 8 times its slope, the Laplacian 4, away from the border."""
    y, x = torch.meshgrid(*[torch.arange(12.0, dtype=torch.float64, device=device)] * 2, indexing="ij")
    surface = (3 * x + 2 * y + x * x + y * y)[None, None]
    wanted = ((sobel(axis=1), 8 * (3 + 2 * x)), (sobel(axis=0), 8 * (2 + 2 * y)), (laplacian(), torch.full_like(x, 4)))
    found = [Filter(kernel, channels=1, dtype=torch.float64).to(device)(surface)[0, 0] for kernel, _ in wanted]
    return max((got - value)[1:-1, 1:-1].abs().max().item() for got, (_, value) in zip(found, wanted))


def patches_of(photographs: Tensor) -> Tensor:
    """Squares of the grey photographs [520, 1, 32, 32], with mean 0 and deviation 1 over all."""
    grey = photographs.mean(1, keepdim=True)
    squares = grey.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE).reshape(-1, 1, SIDE, SIDE)
    return (squares - squares.mean()) / squares.std()


def learner() -> nn.Module:
    """A 3x3 convolution of nine weights."""
    network = Filter(torch.randn(3, 3) * 0.1, channels=1)
    return network.requires_grad_()


def loss(network: nn.Module, patches: Tensor, wanted: Tensor) -> Tensor:
    return mse_loss(network(patches), wanted)


class FiltersAsConvolutions(Recipe):
    row = "B9"
    title = "Image filters as convolutions"
    title_es = "Procesamiento de imágenes: filtros como convoluciones"
    syllabi = ("S2",)
    source = "Gonzalez, Woods, Digital image processing, chapter 3; scipy.ndimage"
    data = "two photographs of 427x640 pixels (scikit-learn), in colour"
    models = ("dlops.models.vision.filters",)
    kernels = ("conv",)
    goals = (Goal("difference", "<=", 1e-5, "largest from scipy.ndimage: 11 filters, 4 padding modes, both photographs"),)

    def run(self, session: Session) -> Outcome:
        photographs = load_photographs()
        images = photographs[..., 100:164, 200:300] if session.quick else photographs
        found = list(differences(session, images))
        patches = patches_of(photographs)
        wanted = Filter(sobel(axis=1), channels=1)(patches)
        trained = session.build("learner", learner)
        trained = session.fit("learner", trained, loss, (patches, wanted), PLAN).network
        learned = trained.conv.weight.detach().cpu()[0, 0]
        scores = {
            "difference": max(value for _, _, value in found),
            "Sobel's nine weights, learned: largest error": (learned - sobel(axis=1)).abs().max().item(),
        }
        return Outcome(scores, self._checks(session, images), lambda: self._draw(session, photographs, learned))

    def _checks(self, session: Session, images: Tensor) -> list[Check]:
        (image,) = session.to_device(images[:1, :, :64, :96].double())
        blur = gaussian(SIGMA)
        with torch.no_grad(), session.kernels():
            whole = Filter(torch.outer(blur, blur), dtype=torch.float64).to(session.device)(image)
            parts = Separable(blur, dtype=torch.float64).to(session.device)(image)
            separable = (parts - whole).abs().max().item()
            spectral = spectral_error(image)
            derivative = derivative_error(session.device)
        return [
            Check("circular padding: difference from the Fourier product, float64", spectral, "<=", 1e-11),
            Check("separable and full Gaussian, largest difference, float64", separable, "<=", 1e-12),
            Check("Sobel and Laplacian of a parabola: largest error, float64", derivative, "<=", 1e-10),
        ]

    def _draw(self, session: Session, photographs: Tensor, learned: Tensor) -> Figure:
        shown = photographs[:, :, 40:240, 120:320]
        shown = shown[:1].to(session.device)
        blur = gaussian(SIGMA)
        kernels = {name: preset["kernel"] for name, preset in Filter.PRESETS.items()}
        kernels |= {"gaussian": torch.outer(blur, blur), "sobel_x, learned": learned}
        order = ("", "box", "gaussian", "sharpen", "unsharp", "emboss", "sobel_x", "sobel_x, learned", "sobel_y",
                 "laplacian", "gabor_0", "gabor_45")  # fmt: skip
        made = pictures.figure(6.4, 5.0)
        for axes, name in zip(made.subplots(3, 4).flat, order):
            axes.set_title(name or "photograph", fontsize=8, pad=2)
            axes.set_axis_off()
            if not name:
                axes.imshow(shown[0].permute(1, 2, 0).cpu().numpy())
                continue
            kernel = kernels[name]
            with torch.no_grad(), session.kernels():
                picture = Filter(kernel).to(session.device)(shown)[0].cpu()
            if abs(kernel.sum().item()) > 0.5:  # keeps the brightness
                axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
            else:
                grey = picture.mean(0)
                limit = grey.abs().quantile(0.99).item()
                axes.imshow(grey.numpy(), cmap="gray", vmin=-limit, vmax=limit)
            inset = axes.inset_axes((0.72, 0.72, 0.28, 0.28))
            inset.imshow(kernel.numpy(), cmap="coolwarm", vmin=-kernel.abs().max().item(), vmax=kernel.abs().max().item())
            inset.set(xticks=[], yticks=[])
        return made

    def step(self, session: Session) -> Step:
        patches = patches_of(load_photographs())[:16]
        return Step(learner, loss, (patches, Filter(sobel(axis=1), channels=1)(patches)), PLAN)
