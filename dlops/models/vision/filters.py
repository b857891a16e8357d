"""The filters of image processing as depthwise convolutions: Gonzalez, Woods, "Digital image processing", chapter 3.

    image [N, C, H, W] -> every channel correlated with the same kernel [kH, kW] -> [N, C, H, W]

A convolution of torch, and here, does not flip its kernel: what signal processing calls correlation. Padding modes have
torch's names, which are not scipy.ndimage's:

    torch      zeros     reflect  replicate  circular        b | a b c | b   is torch's reflect, scipy's mirror;
    scipy      constant  mirror   nearest    wrap            scipy's reflect, a | a b c | c, torch does not have
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlops import nn
from dlops.functional._conv import PADDING_MODES
from dlops.models._preset import Presets


def _rows(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sobel(axis: int) -> Tensor:
    """The derivative along `axis` (0 down, 1 across), smoothed along the other, times 8: [3, 3]."""
    across = _rows((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    return across if axis == 1 else across.T.contiguous()


def laplacian() -> Tensor:
    """The second derivatives of both axes, added up: [3, 3]."""
    return _rows((0, 1, 0), (1, -4, 1), (0, 1, 0))


def box(size: int) -> Tensor:
    """The mean over a square: [size, size]."""
    return torch.full((size, size), 1 / size**2, dtype=torch.float64)


def gaussian(sigma: float, truncate: float = 4.0) -> Tensor:
    """exp(-x^2 / (2 sigma^2)), sampled up to `truncate` deviations and scaled to sum 1: [2 r + 1]. See :class:`Separable`."""
    radius = int(truncate * sigma + 0.5)
    values = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return values / values.sum()


def sharpen() -> Tensor:
    """The image minus its Laplacian: [3, 3]."""
    return _rows((0, 0, 0), (0, 1, 0), (0, 0, 0)) - laplacian()


def unsharp(sigma: float, amount: float) -> Tensor:
    """The image plus `amount` times its difference from the blurred image, unsharp masking, in one kernel: [2 r + 1, 2 r + 1]."""
    blur = gaussian(sigma)
    kernel = -amount * torch.outer(blur, blur)
    kernel[len(blur) // 2, len(blur) // 2] += 1 + amount
    return kernel


def emboss() -> Tensor:
    """The image, lit from above on the left: [3, 3]."""
    return _rows((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def gabor(angle: float, wavelength: float = 8.0, sigma: float = 4.0, aspect: float = 0.5, phase: float = 0.0) -> Tensor:
    """A wave along `angle` (degrees) under a Gaussian, Daugman 1985, without its mean, absolute values summing to 1.

    `sigma` and `wavelength` in pixels; `aspect` < 1 makes the Gaussian longer across the wave.
    """
    radius = int(2.5 * sigma + 0.5)
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1, dtype=torch.float64)] * 2, indexing="ij")
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    under = torch.exp(-(along**2 + (aspect * across) ** 2) / (2 * sigma**2))
    wave = under * torch.cos(2 * math.pi * along / wavelength + phase)
    wave = wave - under * (wave.sum() / under.sum())  # a plain surface gives 0
    return wave / wave.abs().sum()


class Filter(Presets, nn.Module):
    """Args:
        kernel: [kH, kW], both odd, so that the output lies on the input's pixels.
        channels: of the image.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        dilation: distance between the pixels that the kernel reads.
        dtype: of the weights.

    Shape:
        image [N, channels, H, W] -> same. With "reflect" and "circular" H and W must exceed the padding,
        dilation * (kH // 2) and dilation * (kW // 2).

    The kernel is a frozen parameter; ``filter.requires_grad_()`` lets it learn.

    Raises:
        ValueError: a kernel that is not 2-D or of even size; an unknown padding_mode; an image of another shape or too small.
    """

    PRESETS = {
        "box": {"kernel": box(5)},
        "sharpen": {"kernel": sharpen()},
        "unsharp": {"kernel": unsharp(sigma=2.0, amount=1.5)},
        "emboss": {"kernel": emboss()},
        "sobel_x": {"kernel": sobel(axis=1)},
        "sobel_y": {"kernel": sobel(axis=0)},
        "sobel_x_dilated": {"kernel": sobel(axis=1), "dilation": 3},
        "laplacian": {"kernel": laplacian()},
        "gabor_0": {"kernel": gabor(0)},
        "gabor_45": {"kernel": gabor(45)},
    }  # fmt: skip

    def __init__(
        self, kernel: Tensor, channels: int = 3, padding_mode: str = "reflect", dilation: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if kernel.dim() != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ValueError(f"Filter: kernel must be [kH, kW] with both odd: got {list(kernel.shape)}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"Filter: padding_mode must be one of {', '.join(PADDING_MODES)}: got {padding_mode!r}")
        size, padding = tuple(kernel.shape), tuple(dilation * (k // 2) for k in kernel.shape)
        self.conv = nn.Conv2d(
            channels, channels, size, padding=padding, dilation=dilation, groups=channels, bias=False,
            padding_mode=padding_mode, dtype=dtype,
        )  # fmt: skip
        with torch.no_grad():
            self.conv.weight.copy_(kernel.expand(channels, 1, *size))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        conv = self.conv
        wraps = conv.padding_mode in ("reflect", "circular")  # at most once
        smallest = [padding + 1 if wraps else 1 for padding in conv.padding]
        fits = image.dim() == 4 and image.shape[1] == conv.in_channels
        if not fits or image.shape[2] < smallest[0] or image.shape[3] < smallest[1]:
            allowed = f"[N, {conv.in_channels}, H, W] with H at least {smallest[0]} and W at least {smallest[1]}"
            raise ValueError(f"Filter: image must be {allowed} for padding_mode {conv.padding_mode!r}: got {list(image.shape)}")
        return conv(image)


class Separable(nn.Module):
    """A filter whose kernel is an outer product, as a column and then a row: 2 k multiplications per pixel and not k * k.

    Args:
        column: [kH]. row: [kW]; None: the column again. channels, padding_mode, dilation, dtype: as :class:`Filter`.
    """

    def __init__(
        self, column: Tensor, row: Tensor | None = None, channels: int = 3, padding_mode: str = "reflect", dilation: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        row = column if row is None else row
        self.column = Filter(column[:, None], channels, padding_mode, dilation, dtype)
        self.row = Filter(row[None], channels, padding_mode, dilation, dtype)

    def forward(self, image: Tensor) -> Tensor:
        return self.row(self.column(image))
