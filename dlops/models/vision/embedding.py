"""Embedding networks: an image becomes a point, and two images show the same identity where their points lie close.

The layers are those of DeepID2: Sun, Wang, Tang 2014, "Deep learning face representation by joint
identification-verification", figure 1:

    image [N, 3, 55, 47] -> 4x4 [20, 52, 44] -> pool [20, 26, 22] -> 3x3 [40, 24, 20] -> pool [40, 12, 10]
                         -> 3x3 [60, 10, 8] -> pool [60, 5, 4] -> 2x2 [80, 4, 3]
    the last two, flattened and side by side -> linear [features] -> a point on the unit sphere

What differs: all weights of a convolution are shared (the paper shares those of the third layer within regions of 2x2 and
those of the fourth not at all), and the output has unit length (Schroff et al. 2015, section 3.1), as the losses of
`dlops.models.vision.metric_losses` want it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dlops import nn
from dlops.models._preset import Presets

KERNELS = (4, 3, 3, 2)  # the first three are followed by pooling


class EmbeddingNet(Presets, nn.Module):
    """Args:
        size: height and width of the image.
        channels: of the image.
        widths: maps of the four convolutions.
        features: length of the embedding.

    Shape:
        image [N, channels, *size] -> embedding [N, features], each of length 1.

    Raises:
        ValueError: not four widths; a size that leaves the last convolution nothing; an image of another shape.
    """

    PRESETS = {
        "deepid2": {"size": (55, 47), "channels": 3, "widths": (20, 40, 60, 80), "features": 160},
        "digits": {"size": (32, 32), "channels": 1, "widths": (16, 32, 48, 64), "features": 32},
    }

    def __init__(
        self, size: Sequence[int] = (32, 32), channels: int = 1, widths: Sequence[int] = (16, 32, 48, 64), features: int = 32
    ) -> None:  # fmt: skip
        super().__init__()
        if len(widths) != len(KERNELS):
            raise ValueError(f"EmbeddingNet: widths must be {len(KERNELS)} numbers: got {tuple(widths)}")
        self.size = tuple(size)
        third = [_maps(side) for side in self.size]
        if len(third) != 2 or min(third) < KERNELS[3]:
            raise ValueError(f"EmbeddingNet: size must be two numbers from {_smallest()} up: got {self.size}")
        fourth = [side - KERNELS[3] + 1 for side in third]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=side, activation="relu")
            for before, after, side in zip((channels, *widths), widths, KERNELS)
        )
        self.pool = nn.MaxPool2d(2)
        self.embed = nn.Linear(widths[2] * math.prod(third) + widths[3] * math.prod(fourth), features)

    def forward(self, image: Tensor) -> Tensor:
        sample = (self.convolutions[0].in_channels, *self.size)
        if image.dim() != 4 or image.shape[1:] != sample:
            raise ValueError(f"EmbeddingNet: image must be [N, {', '.join(map(str, sample))}]: got {list(image.shape)}")
        first, second, third, fourth = self.convolutions
        maps = self.pool(third(self.pool(second(self.pool(first(image))))))
        both = torch.cat([maps.flatten(1), fourth(maps).flatten(1)], dim=1)
        return normalize(self.embed(both), dim=1)


def _maps(side: int) -> int:
    """Side of the maps that the third pooling leaves of an image's."""
    for kernel in KERNELS[:3]:
        side = (side - kernel + 1) // 2
    return side


def _smallest() -> int:
    """The smallest side of an image that leaves the last convolution one position."""
    return next(side for side in range(1, 100) if _maps(side) >= KERNELS[3])
