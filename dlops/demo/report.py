"""The pictures and the HTML page of the demo."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlops.courses.data.digits import CLASSES, Digits
from dlops.courses.pictures import png as png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 1  # pixels of paper around a digit
TITLE = 6  # pixels that the title of a block takes
ENLARGE = 6  # screen pixels per pixel
DPI = 100


def contact_sheet(blocks: Sequence[tuple[str, Digits]], lines: int, across: int = 1) -> Figure:
    """One block of `lines` lines per (title, digits), one column per class; `across` blocks side by side."""
    from matplotlib.figure import Figure

    tiles = [_tile(digits, lines) for _, digits in blocks]
    height, width = tiles[0].shape
    down = -(-len(blocks) // across)
    inches = ENLARGE / DPI
    figure = Figure(figsize=(across * width * inches, down * (height + TITLE) * inches), dpi=DPI)
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes, tile, (title, _) in zip(grid, tiles, blocks):
        axes.imshow(tile.numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10, loc="left", pad=3)
        axes.set_axis_off()
    figure.tight_layout(pad=0.4)
    return figure


def _tile(digits: Digits, lines: int) -> Tensor:
    """The first `lines` digits of every class as one image: class k stands in column k."""
    cell = digits.images.shape[-1] + 2 * MARGIN
    sheet = torch.full((lines * cell, CLASSES * cell), -1.0)
    for label in range(CLASSES):
        for line, image in enumerate(digits.images[digits.labels == label][:lines, 0]):
            top, left = line * cell + MARGIN, label * cell + MARGIN
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def loss_curve(losses: Sequence[float], window: int = 50) -> Figure:
    """Loss of every step and its mean over the last `window` steps."""
    from matplotlib.figure import Figure

    values = torch.tensor(losses, dtype=torch.float64)
    figure = Figure(figsize=(8, 3), dpi=DPI)
    axes = figure.subplots()
    axes.plot(values.numpy(), color="0.8", linewidth=0.6, label="step")
    if len(values) > window:
        means = values.unfold(0, window, 1).mean(dim=1)
        axes.plot(range(window - 1, len(values)), means.numpy(), label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="mean square error of the velocity", yscale="log")
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure


def write_html(path: Path, samples: bytes, loss: bytes, **facts: Any) -> None:
    """Fill report.html.j2; the pictures are embedded, so that the page can be moved."""
    from jinja2 import Environment, StrictUndefined

    template = (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pictures = {"samples_png": _base64(samples), "loss_png": _base64(loss)}
    path.write_text(environment.from_string(template).render(**pictures, **facts), encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
