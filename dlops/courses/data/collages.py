"""Collages: one to four handwritten digits of random size on an empty page, with the class of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlops.courses.data.digits import CLASSES, Digits

INK = 0.35  # a pixel darker than this belongs to the digit that drew it
BACKGROUND = CLASSES  # its place among the classes of the pixels
ATTEMPTS = 12  # to find free room for a digit, before it is left out


@dataclass(frozen=True)
class Collages:
    """Args:
    images: float32 [N, 1, S, S] from 0 (paper) to 1 (ink).
    classes: int64 [N, S, S], of every pixel: the digit, or `BACKGROUND`.
    labels: int64 [N, D], the digits of a collage in the order they were placed; -1: none.
    boxes: float32 [N, D, 4], left, top, right, bottom of each digit's ink in pixels; 0 where there is none.
    """

    images: Tensor
    classes: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_collages(
    digits: Digits,
    count: int,
    generator: torch.Generator,
    side: int = 64,
    most: int = 4,
    sizes: tuple[int, int] = (16, 32),
) -> Collages:
    """`count` collages of one to `most` of `digits` (drawn with repetition; paper 0, ink 1), which do not overlap.

    Args:
        side: of a collage, pixels.
        sizes: the smallest and the largest side that a digit's 8x8 pixels are stretched to.

    Raises:
        ValueError: sizes that do not fit into a collage.
    """
    smallest, largest = sizes
    if not 8 <= smallest <= largest <= side:
        raise ValueError(f"draw_collages: sizes must be from 8 to side ({side}), the smaller first: got {sizes}")

    def draw(low: int, high: Tensor | int, *shape: int) -> Tensor:
        """Integers from `low` to `high`, both included; `high` may differ from place to place."""
        return low + (torch.rand(*shape, generator=generator) * (high - low + 1)).long()

    wanted = draw(1, most, count)
    tiles = torch.zeros(count, most, 3, dtype=torch.int64)  # left, top, size; size 0: none
    for slot in range(most):
        missing = wanted > slot
        for _ in range(ATTEMPTS):
            size = draw(smallest, largest, count)
            left, top = draw(0, side - size, count), draw(0, side - size, count)
            tile = torch.stack([left, top, size], dim=1)
            placed = missing & ~_overlaps(tile[:, None], tiles).any(1)
            tiles[placed, slot] = tile[placed]
            missing &= ~placed
    chosen = draw(0, len(digits) - 1, count, most)
    present = tiles[..., 2] > 0
    labels = torch.where(present, digits.labels[chosen], -1)

    layers = torch.stack([render(digits.images[chosen[:, k], 0], tiles[:, k], side) for k in range(most)], dim=1)
    ink, owner = (layers * present[..., None, None]).max(dim=1)  # [N, S, S] each
    inked = ink >= INK
    classes = torch.where(inked, labels.gather(1, owner.flatten(1)).view_as(owner), BACKGROUND)
    own = inked[:, None] & (owner[:, None] == torch.arange(most)[:, None, None])  # [N, D, S, S]
    return Collages(ink[:, None].clamp(max=1), classes, labels, _boxes(own))


def render(digits: Tensor, tiles: Tensor, side: int) -> Tensor:
    """Digits [N, 8, 8], each stretched by bilinear interpolation over its tile (left, top, size) [N, 3] -> [N, side, side]."""
    left, top, size = tiles.float().unbind(1)
    columns = _interpolation(left, size, digits.shape[-1], side)
    rows = _interpolation(top, size, digits.shape[-2], side)
    return rows @ digits @ columns.mT


def _interpolation(start: Tensor, size: Tensor, points: int, side: int) -> Tensor:
    """[N, side, points]: the weight of every point of a line in every pixel of the page it is stretched over."""
    pixels = torch.arange(side) + 0.5
    places = (pixels - start[:, None]) * points / size[:, None].clamp(min=1) - 0.5  # [N, side], in points
    return (1 - (places[..., None] - torch.arange(points)).abs()).clamp(min=0)


def _overlaps(tile: Tensor, others: Tensor) -> Tensor:
    """Whether tiles [..., 3] share a pixel with others [..., 3]; a tile of size 0 does with none."""
    apart = (tile[..., :2] + tile[..., 2:] <= others[..., :2]) | (others[..., :2] + others[..., 2:] <= tile[..., :2])
    return ~apart.any(-1) & (others[..., 2] > 0)


def _boxes(own: Tensor) -> Tensor:
    """Masks [..., H, W] -> [..., 4]: left, top, right, bottom of what is set; 0 where nothing is."""
    edges = []
    for axis in (-2, -1):  # of the sums: over rows for left and right, over columns for top and bottom
        line = own.any(axis)  # [..., W] or [..., H]
        places = torch.arange(line.shape[-1])
        first = torch.where(line, places, line.shape[-1]).amin(-1)
        last = torch.where(line, places + 1, 0).amax(-1)
        edges.append((torch.minimum(first, last), last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1).float()
