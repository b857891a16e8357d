"""The pictures of the recipes, with matplotlib. Figures are made without pyplot: no state, no window, equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def figure(width: float = 6.4, height: float = 3.6) -> Figure:
    """An empty figure, inches; every picture of the courses is made here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def tiles(lines: Sequence[tuple[str, Tensor]], across: int = 10, low: float | None = None, high: float | None = None) -> Figure:
    """Blocks of small images one below the other, each with a title: (title, images [N, 1 or 3, H, W]).

    Each block has `across` images a row; grey images are drawn dark on light, from `low` to `high` (default: their own range).
    """
    blocks = [(title, _sheet(images.detach().float().cpu(), across)) for title, images in lines]
    # one height for all rows of images, an extra line per title
    rows = sum(-(-len(images) // across) for _, images in lines)
    made = figure(6.4, 6.4 / across * rows + 0.3 * len(blocks))
    grid = made.subplots(len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": [len(b) for _, b in blocks]})[:, 0]
    for axes, (title, sheet) in zip(grid, blocks):
        if sheet.shape[-1] == 3:
            axes.imshow(sheet.clamp(0, 1).numpy(), interpolation="nearest")
        else:
            axes.imshow(sheet[..., 0].numpy(), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title, fontsize=9, loc="left", pad=2)
        axes.set_axis_off()
    return made


def _sheet(images: Tensor, across: int) -> Tensor:
    """[N, C, H, W] -> [rows * (H + 1), across * (W + 1), C], with a line of paper between the images."""
    n, c, height, width = images.shape
    rows = -(-n // across)
    paper = images.max().item() if c == 3 else images.min().item()
    sheet = images.new_full((rows * (height + 1), across * (width + 1), c), paper)
    for k, image in enumerate(images):
        top, left = k // across * (height + 1), k % across * (width + 1)
        sheet[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return sheet


def curves(
    lines: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, xs: Sequence[float] | None = None, log: str = "",
    smooth: int = 1,
) -> Figure:  # fmt: skip
    """One curve per name. `log` names the logarithmic axes ("", "x", "y", "xy"); `smooth` averages over that many points."""
    made = figure()
    axes = made.subplots()
    for name, values in lines.items():
        ys = torch.as_tensor(values, dtype=torch.float64)
        if smooth > 1 and len(ys) > smooth:
            ys = ys.unfold(0, smooth, 1).mean(1)
        axes.plot(list(xs)[: len(ys)] if xs is not None else range(len(ys)), ys.numpy(), label=name, linewidth=1.2)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return made


def scatter(points: Tensor, labels: Tensor, title: str = "") -> Figure:
    """Points [N, 2] in a colour per label [N]."""
    made = figure(5, 4)
    axes = made.subplots()
    for label in labels.unique().tolist():
        chosen = points[labels == label].detach().cpu()
        axes.scatter(chosen[:, 0], chosen[:, 1], s=6, color=f"C{int(label) % 10}", label=str(int(label)))
    axes.legend(frameon=False, fontsize=7, ncols=2, markerscale=2)
    axes.set_title(title, fontsize=9, loc="left")
    return made


def bars(values: Mapping[str, float], ylabel: str) -> Figure:
    """One bar per name."""
    made = figure()
    axes = made.subplots()
    axes.bar(list(values), list(values.values()), color="C0")
    axes.set_ylabel(ylabel)
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    return made


def png(made: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes (matplotlib writes no date into PNG)."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png")
    return buffer.getvalue()


def shrink(picture: Path, to: Path) -> None:
    """A copy with a palette of 256 colours, a third of the size, for pages that are kept under version control."""
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
