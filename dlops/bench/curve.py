"""Time per token against length: LSTM, GRU, causal attention and causal convolution of one width, on one page.

A recurrent layer spends the same on every token, but one after the other: with few sequences in a batch each step reads all
recurrent weights for a handful of vectors. Attention and convolution take all tokens at once; convolution sees a few of them,
attention all, and pays for it in proportion to the length. Where the lines cross is why transformers replaced recurrent
networks on parallel machines, and why they are left again where sequences grow long.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlops.bench._text import columns
from dlops.bench.machine import environment
from dlops.bench.timing import Result, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
WIDTH, BATCH, HEADS, TAPS = 256, 1, 4, 8
DASHED = (0, (4, 2))
FORWARD, BOTH = "forward", "forward + backward"
COLOURS = {"LSTM": "#0072b2", "GRU": "#56b4e9", "attention": "#d55e00", "convolution": "#009e73"}  # Okabe & Ito


# ---- the layers. `layers` and `functions` are torch.nn and torch.nn.functional, or ours ----


class _Recurrent(nn.Module):
    """x [B, L, D] -> [B, L, D]."""

    def __init__(self, layers: ModuleType, kind: str, width: int) -> None:
        super().__init__()
        self.layer = getattr(layers, kind)(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class _Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2, each token seeing those before it: x [B, L, D] -> [B, L, D]."""

    def __init__(self, layers: ModuleType, functions: ModuleType, width: int, heads: int) -> None:
        super().__init__()
        self.project, self.combine = layers.Linear(width, 3 * width), layers.Linear(width, width)
        self.attend, self.heads = functions.scaled_dot_product_attention, heads

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).unflatten(-1, (3, self.heads, -1))  # [B, L, 3, heads, d]
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [B, heads, L, d]
        return self.combine(self.attend(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))


class _Convolution(nn.Module):
    """Each token a sum over itself and those just before it: x [B, D, L] -> [B, D, L]."""

    def __init__(self, layers: ModuleType, width: int, taps: int) -> None:
        super().__init__()
        self.layer = layers.Conv1d(width, width, taps, padding=taps - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[..., : x.shape[-1]]


def _layers(layers: ModuleType, functions: ModuleType, width: int, heads: int, taps: int) -> dict[str, nn.Module]:
    return {
        "LSTM": _Recurrent(layers, "LSTM", width),
        "GRU": _Recurrent(layers, "GRU", width),
        "attention": _Attention(layers, functions, width, heads),
        "convolution": _Convolution(layers, width, taps),
    }


# ---- measuring ----


@dataclass(frozen=True)
class Point:
    """One layer at one length. Seconds per token, the median over rounds of ours and of torch's in turns."""

    layer: str
    passes: str  # FORWARD or BOTH
    length: int
    dlops: float
    torch: float
    ratio: float  # torch's time over ours


@dataclass(frozen=True)
class Curve:
    """The points, and what they were measured on."""

    points: list[Point]
    width: int
    batch: int
    heads: int
    taps: int
    parameters: dict[str, int]  # of each layer
    clock: str
    device: str
    threads: int

    def line(self, layer: str, passes: str) -> list[Point]:
        return [point for point in self.points if (point.layer, point.passes) == (layer, passes)]

    def about(self) -> str:
        """One line of what the figures hold for."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}, " if self.device == "cpu" else ""
        return f"width {self.width}, batch {self.batch}, float32, {self.device}, {threads}medians by {self.clock}"

    def describe(self, layer: str) -> str:
        kinds = {"attention": f", {self.heads} heads, causal", "convolution": f", {self.taps} taps, causal"}
        return f"{layer}{kinds.get(layer, '')}, {self.parameters[layer] / 1e3:.0f} k parameters"

    def table(self) -> str:
        """Microseconds per token, ours, with how many times slower torch is; one line per length."""
        blocks = []
        for passes in (FORWARD, BOTH):
            lines = {name: self.line(name, passes) for name in self.parameters}
            rows = [("length", *lines)]
            for k, length in enumerate(dict.fromkeys(point.length for point in self.points)):
                cells = [f"{1e6 * line[k].dlops:.2f} ({line[k].ratio:.2f}x)" for line in lines.values()]
                rows.append((str(length), *cells))
            blocks.append(f"{passes}, us per token (torch: x)\n{columns(rows)}")
        layers = "; ".join(self.describe(name) for name in self.parameters)
        return "\n\n".join([*blocks, f"{layers}.\n{self.about()}."])

    def as_json(self) -> str:
        """Everything measured, with where and on what it was taken."""
        taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return json.dumps({"taken": taken, "environment": environment(), **asdict(self)}, indent=1)


def measure(
    lengths: Sequence[int] = LENGTHS, *, width: int = WIDTH, batch: int = BATCH, heads: int = HEADS, taps: int = TAPS,
    device: torch.device | str = "cpu", seconds: float = 0.4,
) -> Curve:  # fmt: skip
    """Times one layer of each kind, ours and torch's in turns, over sequences of every length.

    Args:
        lengths: tokens per sequence.
        width: of the tokens; heads: of attention; taps: tokens that a convolution sees (8: as many parameters as the LSTM).
        seconds: per layer, length and pass, at least: every layer runs 7 times and more.

    Raises:
        ValueError: no length, or one below 1.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"curve: lengths must be one or more numbers of at least 1: got {list(lengths)}")
    import dlops

    where = torch.device(device)
    stock = _layers(nn, nn.functional, width, heads, taps)
    ours = _layers(dlops.nn, dlops.functional, width, heads, taps)
    for name, layer in ours.items():
        layer.load_state_dict(stock[name].state_dict())
    points, clock = [], ""
    for length, (name, layer) in itertools.product(lengths, ours.items()):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name}, {length} tokens", end="", file=sys.stderr, flush=True)
        size = (batch, width, length) if name == "convolution" else (batch, length, width)
        pair = {"dlops": layer.to(where), "torch": stock[name].to(where)}
        for passes, result in _compare(pair, torch.randn(size, device=where), seconds):
            own, theirs = (result.medians[side] / (batch * length) for side in ("dlops", "torch"))
            points.append(Point(name, passes, length, own, theirs, result.ratio("torch", "dlops")))
            clock = result.clock
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    parameters = {name: sum(p.numel() for p in layer.parameters()) for name, layer in ours.items()}
    return Curve(points, width, batch, heads, taps, parameters, clock, str(where), torch.get_num_threads())


def _compare(pair: dict[str, nn.Module], x: Tensor, seconds: float) -> Iterator[tuple[str, Result]]:
    forward = {side: _forward(layer.eval(), x) for side, layer in pair.items()}
    yield FORWARD, compare(forward, seconds=seconds, device=x.device)
    dy = torch.randn_like(x)
    both = {side: _both(layer.train(), x.detach().requires_grad_(), dy) for side, layer in pair.items()}
    yield BOTH, compare(both, seconds=seconds, device=x.device)


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: layer(x))


def _both(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    leaves = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), leaves, dy)


# ---- drawing ----


def figure(curve: Curve) -> Figure:
    """Two panels, forward and forward + backward, on the same axes; ours drawn through, torch's dashed."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    picture = Figure(figsize=(10, 4.6), dpi=110)
    panels = picture.subplots(1, 2, sharex=True, sharey=True)
    lengths = sorted({point.length for point in curve.points})
    for axes, passes in zip(panels, (FORWARD, BOTH)):
        for name, colour in COLOURS.items():
            line = sorted(curve.line(name, passes), key=lambda point: point.length)
            x = [point.length for point in line]
            axes.plot(x, [1e6 * point.dlops for point in line], color=colour, marker="o", markersize=3.5, linewidth=1.8)
            axes.plot(x, [1e6 * point.torch for point in line], color=colour, linestyle=DASHED, linewidth=1.0)
        axes.set(xscale="log", yscale="log", xlabel="tokens in the sequence")
        axes.set_title(passes, fontsize=10, loc="left")
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=8)
        axes.grid(True, which="major", color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("microseconds per token")
    keys = [Line2D([], [], color=colour, marker="o", markersize=3.5) for colour in COLOURS.values()]
    keys += [Line2D([], [], color="0.3", linewidth=1.8), Line2D([], [], color="0.3", linewidth=1.0, linestyle=DASHED)]
    labels = [*(curve.describe(name) for name in COLOURS), "dlops", "torch"]
    picture.legend(keys, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    picture.suptitle(f"Time per token against length: {curve.about()}", fontsize=10, x=0.01, ha="left")
    picture.tight_layout(rect=(0, 0.11, 1, 1))
    return picture
