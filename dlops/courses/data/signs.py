"""Traffic signs, drawn: 43 classes as in GTSRB, seen under rotation, blur, noise, bad light and behind obstacles.

A sign is a plate (6 shapes, in their usual colours) with a glyph (7), 42 classes; the 43rd is the white disc with a dark
diagonal that ends all restrictions. Shapes and glyphs are signed distances, so that every edge is antialiased and a whole
set is drawn by a few tensor operations. Coordinates run from -1 to 1 over the image, x to the right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: corners (0: a disc), direction of one edge's normal in degrees (y down), colours of plate, rim and glyph
_SHAPES = {
    "disc": (0, 0.0, "white", "red", "black"),
    "triangle": (3, 90.0, "white", "red", "black"),
    "triangle down": (3, -90.0, "yellow", "red", "black"),
    "square": (4, 0.0, "blue", "white", "white"),
    "diamond": (4, 45.0, "yellow", "white", "black"),
    "octagon": (8, 0.0, "red", "white", "white"),
}
_COLOURS = {
    "white": (0.95, 0.95, 0.95), "black": (0.08, 0.08, 0.08), "red": (0.80, 0.08, 0.10), "blue": (0.05, 0.25, 0.70),
    "yellow": (0.95, 0.80, 0.10),
}  # fmt: skip
#: strokes (x0, y0, x1, y1), three each; a dot is a stroke of no length
_GLYPHS = {
    "exclamation": ((0, -0.8, 0, 0.15), (0, 0.75, 0, 0.75), (0, 0.75, 0, 0.75)),
    "bar": ((-0.8, 0, 0.8, 0), (-0.8, 0, 0.8, 0), (-0.8, 0, 0.8, 0)),
    "cross": ((-0.65, -0.65, 0.65, 0.65), (-0.65, 0.65, 0.65, -0.65), (0, 0, 0, 0)),
    "left": ((-0.8, 0, 0.8, 0), (-0.8, 0, -0.15, -0.65), (-0.8, 0, -0.15, 0.65)),
    "right": ((-0.8, 0, 0.8, 0), (0.8, 0, 0.15, -0.65), (0.8, 0, 0.15, 0.65)),
    "ahead": ((0, -0.8, 0, 0.8), (0, -0.8, -0.65, -0.15), (0, -0.8, 0.65, -0.15)),
    "bend": ((-0.5, 0.8, -0.5, 0), (-0.5, 0, 0.5, 0), (0.5, 0, 0.5, -0.8)),
}
SHAPES, GLYPHS = tuple(_SHAPES), tuple(_GLYPHS)
CLASSES = len(SHAPES) * len(GLYPHS) + 1
END = CLASSES - 1  # the end of all restrictions
_STROKE, _RIM = 0.16, 0.16  # half width of a stroke in the glyph's units; width of the rim in the plate's radius
_GLYPH_SIZE, _SMALL_GLYPH_SIZE = 0.46, 0.34  # in the plate's radius, the second for triangles


@dataclass(frozen=True)
class Signs:
    """Images [N, 3, S, S] float32 from -1 to 1, their classes [N] int64: 7 * shape + glyph, or `END`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def name(label: int) -> str:
    """What the sign of a class looks like: "triangle, bend"."""
    return "end" if label == END else f"{SHAPES[label // len(GLYPHS)]}, {GLYPHS[label % len(GLYPHS)]}"


def draw_signs(count: int, generator: torch.Generator, side: int = 32, hard: float = 1.0) -> Signs:
    """`count` signs, every class as often as any other (up to one).

    Args:
        hard: how bad the conditions are: 0 shows every sign upright, sharp and in full light.
    """
    parts = []
    labels = (torch.arange(count) % CLASSES)[torch.randperm(count, generator=generator)]
    for part in labels.split(2048):  # [N, side, side] once per stroke and edge: bounded memory
        parts.append(_draw(part, generator, side, hard))
    return Signs(torch.cat(parts), labels)


def _draw(labels: Tensor, generator: torch.Generator, side: int, hard: float) -> Tensor:
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    # where the sign is: rotation by up to 15 degrees, a view from the side, size, place
    angle = hard * uniform(-15, 15) * math.pi / 180
    narrow = 1 - hard * uniform(0, 0.2)
    radius = 0.85 - hard * uniform(0, 0.2)
    place = hard * uniform(-0.12, 0.12, 2)
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = (x - place[:, 0, None, None]) / narrow[:, None, None], y - place[:, 1, None, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = (cosine * x + sine * y) / radius[:, None, None], (cosine * y - sine * x) / radius[:, None, None]  # [N, S, S]

    pixel = 2 / side / radius[:, None, None]  # its side, in radii of the plate
    shape = torch.where(labels == END, 0, labels // len(GLYPHS))
    outside = plate_distance(x, y, shape)
    plate, inner = _coverage(outside, pixel), _coverage(outside + _RIM, pixel)
    size = torch.where(_corners(shape) == 3, _SMALL_GLYPH_SIZE, _GLYPH_SIZE)
    glyph = _coverage(glyph_distance(x / size, (y - _middle(shape)) / size, labels) * size, pixel)
    glyph = torch.where((labels == END)[:, None, None], _coverage((x + y).abs() / math.sqrt(2) - 0.2, pixel), glyph)

    face, rim, ink = (_palette(column)[shape] for column in (2, 3, 4))  # [N, 3] each
    rim = torch.where((labels == END)[:, None], ink, rim)
    image = F.interpolate(uniform(0.1, 0.8, 3, 4, 4), size=side, mode="bicubic").clamp(0, 1)  # what is behind the sign
    for colour, cover in ((rim, plate), (face, inner), (ink, glyph * inner)):
        colour = (colour + hard * 0.06 * (uniform(0, 1, 3) - 0.5))[..., None, None]
        image = image + cover[:, None] * (colour - image)

    # a leaf, a pole, another car: a band across, over a third of the signs
    direction, depth = uniform(0, 2 * math.pi)[:, None, None], uniform(0.35, 0.8)[:, None, None]
    band = (x * direction.cos() + y * direction.sin() - depth).abs() < 0.14
    hidden = band & (hard * uniform(0, 1, 1, 1) > 0.67)
    image = torch.where(hidden[:, None], uniform(0, 0.7, 3, 1, 1), image)

    image = _blur(image, hard * uniform(0, 1.0))
    slope = uniform(-0.3, 0.3)[:, None, None] * x.clamp(-1, 1) + uniform(-0.3, 0.3)[:, None, None] * y.clamp(-1, 1)
    light = 1 - hard * (uniform(0, 0.6)[:, None, None] + 0.5 * slope)  # dusk, and a shadow to one side
    haze = hard * uniform(0, 0.3)[:, None, None, None]
    image = haze * 0.7 + (1 - haze) * image * light.clamp(min=0.15)[:, None]
    image = image + hard * 0.06 * uniform(0, 1, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1) * 2 - 1


def plate_distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """[N, S, S]: how far outside (negative: inside) the plate of `shape` [N] the points x, y [N, S, S] lie.

    A regular polygon is where every edge's half-plane is; outside its corners this is less than the true distance. The
    corners lie on a circle of radius 1.
    """
    corners, first = _corners(shape), _direction(shape)
    y = y - _middle(shape)
    apothem = torch.cos(math.pi / corners.clamp(min=3))
    step = 2 * math.pi / corners.clamp(min=3)
    # of the edges' normals, the one nearest to the point's own direction decides
    towards = torch.atan2(y, x) - first
    off = towards - step * torch.round(towards / step)
    length = torch.hypot(x, y)
    return torch.where(corners == 0, length - 1, length * off.cos() - apothem)


def _corners(shape: Tensor) -> Tensor:
    return torch.tensor([kind[0] for kind in _SHAPES.values()])[shape][:, None, None]


def _direction(shape: Tensor) -> Tensor:
    """Of the normal of one edge, radians: [N, 1, 1]."""
    return torch.tensor([kind[1] for kind in _SHAPES.values()])[shape][:, None, None] * math.pi / 180


def _middle(shape: Tensor) -> Tensor:
    """y of the plate's middle, [N, 1, 1]: 0, but for triangles, so that as much room is above as below."""
    return torch.where(_corners(shape) == 3, 0.25 * _direction(shape).sin(), 0.0)


def glyph_distance(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """[N, S, S]: how far outside the strokes of the glyphs of `labels` [N] the points x, y [N, S, S] lie."""
    table = torch.tensor([_GLYPHS[name] for name in GLYPHS])  # [7, 3, 4]
    best = torch.full_like(x, math.inf)
    for stroke in table[labels % len(GLYPHS)].unbind(1):  # [N, 4]
        x0, y0, x1, y1 = (end[:, None, None] for end in stroke.unbind(1))
        across, down = x1 - x0, y1 - y0
        along = ((x - x0) * across + (y - y0) * down) / (across**2 + down**2).clamp(min=1e-9)
        along = along.clamp(0, 1)
        best = torch.minimum(best, torch.hypot(x - x0 - along * across, y - y0 - along * down))
    return best - _STROKE


def _coverage(distance: Tensor, pixel: Tensor) -> Tensor:
    """The share of a pixel that is inside, for an edge at that signed distance."""
    return (0.5 - distance / pixel).clamp(0, 1)


def _palette(column: int) -> Tensor:
    return torch.tensor([_COLOURS[_SHAPES[name][column]] for name in SHAPES])


def _blur(image: Tensor, deviation: Tensor) -> Tensor:
    """Every image [N, 3, S, S] under a Gaussian of its own deviation [N] (pixels, up to 1.5)."""
    n, c, height, width = image.shape
    kernel = torch.exp(-torch.arange(-3, 4.0).square() / (2 * deviation[:, None].clamp(min=0.1) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)  # [3N, 7]
    flat = F.pad(image, (3, 3, 3, 3), mode="replicate").reshape(1, n * c, height + 6, width + 6)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * c).view(n, c, height, width)
