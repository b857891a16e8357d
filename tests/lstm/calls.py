"""Recurrent networks of every form: the same calls to torch, to the specification and to our kernels, and the error rule."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import dlops
from dlops import functional
from dlops.reference import lstm as reference

CELLS = list(reference.GATES)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# What a value that is rounded once to the type may be off by, relative to the largest value: the absolute term of the rule,
# for cases in which torch's own error happens to be almost nothing.
TINY = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NORMS = {"lstm": ("norm_ih", "norm_hh", "cell_weight", "cell_bias"), "gru": ("norm_ih", "norm_hh")}


@dataclass(frozen=True)
class Shape:
    """A network and its input, without tensors."""

    cell: str = "lstm"
    input: int = 5
    hidden: int = 7
    steps: int = 6
    batch: int = 3
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj: int = 0
    batch_first: bool = False
    state: bool = True  # h0 and c0 are given
    lengths: tuple[int, ...] | None = None
    packed: bool = False  # a PackedSequence in the place of lengths, which then decrease
    # what torch does not have
    reset: bool = False
    layer_norm: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)  # not training: the expectation

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def width(self) -> int:
        return self.proj or self.hidden

    @property
    def is_torchs(self) -> bool:
        """Whether torch knows such a network."""
        return not (self.reset or self.layer_norm or any(self.zoneout) or 0 in (self.lengths or ()))

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """By name: x [T, B, I], h0, c0, and of every layer and direction its weights; everything that has a gradient."""
        generator = torch.Generator().manual_seed(self.input + self.hidden + self.steps)
        make = lambda *size, scale=1.0: (torch.randn(size, generator=generator) * scale).to(dtype)  # noqa: E731
        tensors = {"x": make(self.steps, self.batch, self.input)}
        count, rows = self.layers * self.directions, reference.GATES[self.cell] * self.hidden
        if self.state:
            tensors["h0"] = make(count, self.batch, self.width)
            if self.cell == "lstm":
                tensors["c0"] = make(count, self.batch, self.hidden)
        for k in range(count):
            inputs = self.input if k < self.directions else self.directions * self.width
            scale = 1 / max(1, self.width) ** 0.5
            weights = {"w_ih": make(rows, inputs, scale=scale), "w_hh": make(rows, self.width, scale=scale)}
            if self.bias:
                weights |= {"b_ih": make(rows, scale=scale), "b_hh": make(rows, scale=scale)}
            if self.proj:
                weights["w_hr"] = make(self.proj, self.hidden, scale=scale)
            if self.layer_norm:
                size = {"norm_ih": rows, "norm_hh": rows, "cell_weight": self.hidden, "cell_bias": self.hidden}
                weights |= {name: make(size[name], scale=0.5) + ("bias" not in name) for name in NORMS[self.cell]}
            tensors |= {f"{name}.{k}": value for name, value in weights.items()}
        return tensors

    def mask(self) -> torch.Tensor | None:
        """Where the state is reset, [T, B]."""
        return _random_mask(self.steps, self.batch) if self.reset else None

    def split(self, tensors):
        """x, h0, c0, torch's flat list, and the norms' lists."""
        each = [
            [t for name, t in tensors.items() if name.endswith(f".{k}")] for k in range(self.layers * self.directions)
        ]
        extra = len(NORMS[self.cell]) if self.layer_norm else 0
        params = [t for weights in each for t in weights[: len(weights) - extra]]
        norms = [tuple(weights[-extra:]) for weights in each] if extra else None
        return tensors["x"], tensors.get("h0"), tensors.get("c0"), params, norms


@functools.cache
def _random_mask(steps: int, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(steps, batch, generator=generator) < 0.3


def specification(shape: Shape, tensors):
    x, h0, c0, params, norms = shape.split(tensors)
    lengths = None if shape.lengths is None else torch.tensor(shape.lengths, device=x.device)
    y, h, c, cells = reference.layers(
        x, h0, c0, params, cell=shape.cell, has_biases=shape.bias, num_layers=shape.layers, bidirectional=shape.bidirectional,
        norms=norms, lengths=lengths, reset=shape.mask(), zoneout_h=shape.zoneout[0], zoneout_c=shape.zoneout[1],
    )  # fmt: skip
    return named(y, h, c, cells)


def named(y, h, c=None, cells=None):
    return {name: t for name, t in {"y": y, "h": h, "c": c, "cells": cells}.items() if t is not None}


def torch_module(shape: Shape, package=nn, **more) -> nn.RNNBase:
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(shape.cell, "RNN")
    if kind == "RNN":
        more["nonlinearity"] = shape.cell.removeprefix("rnn_")
    if shape.proj:
        more["proj_size"] = shape.proj
    return getattr(package, kind)(
        shape.input, shape.hidden, shape.layers, bias=shape.bias, batch_first=shape.batch_first,
        bidirectional=shape.bidirectional, **more,
    )  # fmt: skip


def torchs(shape: Shape, tensors):
    """As a user of torch writes it."""
    x, h0, c0, params, _ = shape.split(tensors)
    module = torch_module(shape, dtype=x.dtype)
    named_params = dict(zip(module._flat_weights_names, params))
    hx = None if h0 is None else h0 if c0 is None else (h0, c0)
    if shape.batch_first:
        x = x.transpose(0, 1)
    if shape.lengths is not None:
        x = pack_padded_sequence(x, torch.tensor(shape.lengths), shape.batch_first, enforce_sorted=False)
    y, states = torch.func.functional_call(module, named_params, (x, hx))
    if shape.lengths is not None:
        y, _ = pad_packed_sequence(y, shape.batch_first, total_length=shape.steps)
    if shape.batch_first:
        y = y.transpose(0, 1)
    return named(y, *(states if shape.cell == "lstm" else (states,)))


def ours(shape: Shape, tensors, variant=None, train=False, **more):
    """Our function of the same. Results as torch's, with cells where nothing is packed."""
    x, h0, c0, params, norms = shape.split(tensors)
    hx = None if h0 is None else h0 if c0 is None else (h0, c0)
    mask = shape.mask()
    reset = None if mask is None else mask.to(x.device)
    batch_first = shape.batch_first and not shape.packed
    if batch_first:
        x = x.transpose(0, 1).contiguous()
        reset = None if reset is None else reset.t().contiguous()
    if shape.packed:
        pack = lambda t: pack_padded_sequence(t, torch.tensor(shape.lengths))  # noqa: E731
        x, more["batch_sizes"], *_ = pack(x)
        reset = None if reset is None else pack(reset).data
    elif shape.lengths is not None:
        more["lengths"] = torch.tensor(shape.lengths, device=x.device)
    if shape.cell == "lstm":
        more |= {"return_all_states": True, "zoneout": shape.zoneout, "norms": norms}
    elif shape.cell == "gru":
        more |= {"zoneout": shape.zoneout[0], "norms": norms}
    y, h, *rest = getattr(functional, shape.cell)(
        x, hx, params, shape.bias, shape.layers, 0.0, train, shape.bidirectional, batch_first, variant=variant, reset=reset,
        **more,
    )  # fmt: skip
    c, cells = rest if rest else (None, None)
    if shape.packed:
        steps = torch.tensor(shape.lengths)
        unpack = lambda t: _unpack(t, more["batch_sizes"], len(steps), shape.steps)  # noqa: E731
        y, cells = unpack(y), None if cells is None else unpack(cells)
    elif batch_first:
        y, cells = y.transpose(0, 1), None if cells is None else cells.transpose(0, 1)
    return named(y, h, c, cells)


def _unpack(data, batch_sizes, batch, steps):
    """[rows, *] to [T, B, *]; differentiable."""
    padded = data.new_zeros(steps, batch, data.shape[-1])
    present = torch.arange(batch) < torch.nn.functional.pad(batch_sizes, (0, steps - len(batch_sizes)))[:, None]
    return padded.masked_scatter(present[..., None].to(data.device), data)


class Call:
    """A network with tensors, on the CPU and in `dtype`; what torch and the specification make of them is computed once, ours
    on the device that `check` is given."""

    def __init__(self, shape: Shape, dtype=torch.float32):
        self.shape, self.dtype = shape, dtype
        self.tensors = shape.tensors(dtype)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            results = specification(shape, self.tensors)
        self.weights = {name: torch.randn(t.shape, generator=generator).to(dtype) for name, t in results.items()}
        self._known: dict[str, dict[str, torch.Tensor]] = {}

    def run(self, fn, cast, grad=True, of=None):
        """Results, and the gradients of their sum times `weights`; `of`: the results in that sum."""
        leaves = {name: cast(t).detach().requires_grad_(grad) for name, t in self.tensors.items()}
        results = fn(self.shape, leaves)
        found = {name: t.detach() for name, t in results.items()}
        if grad:
            loss = sum(
                (t * cast(self.weights[name]).to(t.dtype)).sum()
                for name, t in results.items()
                if of is None or name in of
            )
            found |= {f"d{name}": g for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())))}
        return {name: t.cpu() for name, t in found.items()}

    def known(self, name, fn, cast, of=None):
        key = f"{name} {of}"
        if key not in self._known:
            with dlops.backend("torch"):
                self._known[key] = self.run(fn, cast, of=of)
        return self._known[key]

    def check(self, device="cpu", variant=None, grad=True):
        """Ours by the error rule. Torch's own error is that of its network or, for what it does not have, that of the
        specification in the same type."""
        of = ("y", "h", "c") if self.shape.is_torchs else None
        fn = functools.partial(ours, variant=variant)
        mine = self.run(fn, lambda t: t.to(device), grad, of)
        exact = self.known("exact", specification, torch.Tensor.double, of)
        yours = dict(self.known("torch", torchs if self.shape.is_torchs else specification, lambda t: t, of))
        if "cells" in exact:
            yours.setdefault("cells", self.known("spec", specification, lambda t: t)["cells"])
        for name, value in mine.items():
            what = f"{name} of {self.shape} {self.dtype} by {variant}"
            assert value.dtype is self.dtype, (what, value.dtype)
            torchs_own = self.shape.is_torchs
            worst = 5 if self.shape.layer_norm else 2
            if self.shape.cell == "rnn_relu" and self.dtype is not torch.float32 and name.startswith("d"):
                worst = 8  # a sum that rounds across 0 switches a unit's gradient on or off
            check_rule(value, yours[name], exact[name], what, 2 if torchs_own else 4, worst)
        return mine


@functools.cache
def call(shape: Shape, dtype=torch.float32) -> Call:
    """A Call that all devices and variants share."""
    return Call(shape, dtype)


def check_rule(
    ours: torch.Tensor, yours: torch.Tensor, exact: torch.Tensor, what: str, tinies: float = 1, worst: float = 2
) -> None:
    """The maximum and the mean error against float64 are at most twice torch's own in the same dtype, plus a tiny absolute
    term. tinies: how often; more than once in float16 and bfloat16 where the other one rounds nothing in between. worst: in the
    place of two: behind layer norms of a few nearly equal values every rounding is magnified, and the ratio of two errors is
    luck (its mean over many draws is 1.1 to 1.3)."""
    assert exact.dtype == torch.float64 and ours.shape == exact.shape, (what, ours.shape, exact.shape)
    if ours.numel() == 0:
        return
    assert ours.isfinite().all(), f"{what}: {int((~ours.isfinite()).sum())} of {ours.numel()} values are not finite"
    mine, yours = (ours.double() - exact).abs(), (yours.double() - exact).abs()
    tiny = TINY[ours.dtype] * exact.abs().max() * (1 if ours.dtype is torch.float32 else tinies)
    assert mine.max() <= worst * yours.max() + tiny, (what, float(mine.max()), float(yours.max()), float(tiny))
    assert mine.mean() <= worst * yours.mean() + tiny / 4, (what, float(mine.mean()), float(yours.mean()))


def same_bits(a, b, what=""):
    """Equal to the last bit, by name."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), (what, name, float((value - b[name]).abs().max()))


# ---- what is tried

SHAPES = {
    "plain": dict(),
    "one of everything": dict(input=1, hidden=1, steps=1, batch=1),
    "H = 1": dict(hidden=1, batch=2),
    "T = 1": dict(steps=1),
    "B = 1": dict(batch=1, hidden=33),
    "no state": dict(state=False, hidden=16),
    "no bias": dict(bias=False, hidden=17),
    "full lanes": dict(input=32, hidden=32, batch=32, steps=3),
    "past the lanes": dict(input=33, hidden=35, batch=17, steps=3),
    "long sums": dict(input=270, hidden=300, steps=2, batch=2),
    "bidirectional": dict(bidirectional=True, hidden=9),
    "two layers": dict(layers=2, bidirectional=True),
    "batch first": dict(batch_first=True, layers=2),
    "lengths": dict(lengths=(2, 6, 4), bidirectional=True),
    "lengths, batch first": dict(lengths=(5, 1, 6), batch_first=True, bias=False, layers=2),
    "packed": dict(lengths=(6, 4, 1), packed=True, bidirectional=True, layers=2),
}
LSTM_SHAPES = {
    "projection": dict(proj=3),
    "projection, two layers": dict(proj=5, layers=2, bidirectional=True, bias=False),
    "projection, lengths": dict(proj=3, lengths=(6, 2, 3)),
    "projection, packed": dict(proj=6, lengths=(5, 5, 2), packed=True, bidirectional=True),
}
EXTRA_SHAPES = {
    "reset": dict(reset=True),
    "reset, both ways": dict(reset=True, bidirectional=True, layers=2, batch_first=True),
    "reset, lengths": dict(reset=True, lengths=(6, 0, 3), bidirectional=True),
    "reset, packed": dict(reset=True, lengths=(6, 4, 1), packed=True, bidirectional=True),
    "lengths of nothing": dict(lengths=(0, 3, 0)),
}
GATED_SHAPES = {  # lstm and gru
    "layer norm": dict(layer_norm=True),
    "layer norm, H = 1": dict(layer_norm=True, hidden=1),
    "layer norm, wide": dict(layer_norm=True, hidden=37, input=19, batch=9, bias=False),
    "layer norm, both ways": dict(layer_norm=True, bidirectional=True, layers=2, batch_first=True),
    "layer norm, lengths": dict(layer_norm=True, lengths=(6, 0, 3), reset=True, zoneout=(0.1, 0.3)),
    "layer norm, packed": dict(layer_norm=True, lengths=(6, 4, 1), packed=True, reset=True, bidirectional=True),
    "zoneout": dict(zoneout=(0.2, 0.4)),
    "zoneout, reset": dict(zoneout=(0.3, 0.0), reset=True, bidirectional=True),
}
PROJECTED_EXTRAS = {
    "projection, zoneout": dict(proj=3, zoneout=(0.2, 0.1), reset=True),
    "projection, layer norm": dict(proj=4, layer_norm=True, lengths=(6, 0, 3), bidirectional=True),
}


def shapes(cell: str) -> dict[str, Shape]:
    found = SHAPES | EXTRA_SHAPES
    if cell == "lstm":
        found |= LSTM_SHAPES | PROJECTED_EXTRAS
    if cell in NORMS:
        found |= GATED_SHAPES
    return {name: Shape(cell, **kwargs) for name, kwargs in found.items()}


ALL = {f"{cell}: {name}": shape for cell in CELLS for name, shape in shapes(cell).items()}


def variants(device) -> tuple[str, ...]:
    return (
        ("cells", "fused_cell", "persistent")
        if device.torch_device == "cuda" or device.simt
        else ("cells", "fused_cell")
    )
