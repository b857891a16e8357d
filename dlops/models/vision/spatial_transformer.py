"""Spatial transformer: Jaderberg, Simonyan, Zisserman, Kavukcuoglu 2015, "Spatial transformer networks", section 3.

A localisation network looks at the image and says which affine map theta [N, 2, 3] straightens it; the grid generator and the
bilinear sampler apply that map (equations 1 and 5), and gradients flow through both:

    image -> localisation -> theta -> grid: (x_source, y_source) = theta (x_target, y_target, 1) -> sampler -> image

Coordinates run from -1 to 1 over the outer edges of the image (align_corners=False), x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlops import nn
from dlops.models._preset import Presets


def transform(image: Tensor, theta: Tensor, padding: str = "border") -> Tensor:
    """`image` [N, C, H, W] read at theta [N, 2, 3] times (x, y, 1) of every pixel; bilinear.

    Args:
        padding: what is outside the image: "border" (its nearest pixel) or "zeros".

    Raises:
        ValueError: theta of another shape.
    """
    if theta.shape != (len(image), 2, 3):
        raise ValueError(f"transform: theta must be {[len(image), 2, 3]}: got {list(theta.shape)}")
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)  # [N, H, W, 2]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)


class SpatialTransformer(Presets, nn.Module):
    """A layer that straightens its input. Fresh, it is the identity: the last layer has weights 0 and says (1 0 0; 0 1 0).

    Args:
        side, channels: of the image.
        maps: of the convolutions of the localisation network, each 5x5 behind a 2x2 max pooling.
        hidden: width of its linear layer.

    Shape:
        image [N, channels, side, side] -> the same.

    Raises:
        ValueError: an image too small for the localisation network; an image of another size.
    """

    PRESETS = {
        "digits": {"channels": 1, "side": 60, "maps": (20, 20), "hidden": 20},  # for cluttered digits of 60x60
        "small": {"channels": 3, "side": 32, "maps": (8, 16), "hidden": 32},
    }

    def __init__(self, side: int = 32, channels: int = 3, maps: Sequence[int] = (8, 16), hidden: int = 32) -> None:
        super().__init__()
        self.shape, left = (channels, side, side), side
        self.localisation = nn.Sequential()
        for width in maps:
            self.localisation.append(nn.MaxPool2d(2))
            self.localisation.append(nn.Conv2d(channels, width, kernel_size=5, activation="relu"))
            channels, left = width, left // 2 - 4
        if left < 1:
            raise ValueError(
                f"SpatialTransformer: side must leave {len(maps)} halvings and 5x5 convolutions room: got {side}"
            )
        self.hidden = nn.Linear(channels * left**2, hidden, activation="relu")
        self.theta = nn.Linear(hidden, 6)
        with torch.no_grad():
            self.theta.weight.zero_()
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def parameters_of(self, image: Tensor) -> Tensor:
        """theta [N, 2, 3] for every image."""
        if image.shape[1:] != self.shape:
            wanted, found = ("x".join(map(str, sizes)) for sizes in (self.shape, image.shape[1:]))
            raise ValueError(f"SpatialTransformer: image must be {wanted}: got {found}")
        return self.theta(self.hidden(self.localisation(image).flatten(1))).view(-1, 2, 3)

    def forward(self, image: Tensor) -> Tensor:
        return transform(image, self.parameters_of(image))
