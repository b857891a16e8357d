"""Recurrent networks: single cells, layers over whole sequences in inference and training, sequences of different lengths,
projections, layer norm and zoneout. The input is as wide as the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import dlops
from dlops.bench.cases._case import Candidates, Case

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KEEP_H, KEEP_C = 0.05, 0.5  # of zoneout: Krueger et al. 2016, section 4.1
STEPS = 128
Build = Callable[[torch.device], Candidates]


def lstm_cases() -> list[Case]:
    everywhere = [*_cell_cases(), *_rung_cases(), *_layer_cases(), *_length_cases(), *_extra_cases()]
    names = {case.id for case in everywhere}
    return [*everywhere, *(case for case in _gpu_cases() if case.id not in names)]


# ---- what is run ----


def _cell_cases() -> Iterator[Case]:
    one = [(1, 16), (1, 128), (1, 256), (1, 512), (1, 1024)]
    many = [(32, 128), (32, 256), (32, 512), (32, 1024), (64, 256), (64, 512)]
    for kind in ("LSTM", "GRU"):
        for dtype in (F32, BF16, F16):
            shapes = [*one, *many, (64, 1024)] if dtype is F32 else [(1, 256), (1, 1024), (32, 256), (32, 1024)]
            for batch, hidden in shapes:
                weights = GATES[kind] * hidden * 2 * hidden
                traffic = (weights + batch * hidden * (5 if kind == "LSTM" else 3)) * dtype.itemsize
                compiled = dtype is F32 and (kind, batch, hidden) in (("LSTM", 32, 256), ("GRU", 1, 256))
                yield Case(
                    "lstm", f"{kind.lower()}_cell", (batch, hidden), dtype, _cell(kind, batch, hidden, dtype),
                    2.0 * batch * weights, traffic, compile=compiled, large=(batch, hidden) == (64, 1024),
                )  # fmt: skip


def _rung_cases() -> Iterator[Case]:
    """Of the ladder, those that every device has; and where a GPU's differ."""
    for rung in ("cells", "fused_cell"):
        yield _Layer("LSTM", 8, 64, variant=rung).case(F32)
    for rung in ("cells", "fused_cell", "persistent"):
        yield _Layer("LSTM", 16, 768, variant=rung, device="cuda").case(BF16)


def _layer_cases() -> Iterator[Case]:
    one, many = [(1, 128), (1, 256), (1, 512), (1, 1024)], [(32, 128), (32, 256), (32, 512), (64, 256)]
    large = [(32, 1024), (64, 128), (64, 512), (64, 1024)]
    for kind in ("LSTM", "GRU"):
        for batch, hidden in (*one, *many, *large):
            layer = _Layer(kind, batch, hidden)
            yield layer.case(F32, large=(batch, hidden) in large)
            yield layer.case(F32, training=True, large=(batch, hidden) not in (*one, *many[:2]))
        for dtype in (BF16, F16):
            for batch, hidden in ((1, 512), (32, 256)):
                yield _Layer(kind, batch, hidden).case(dtype)
        yield _Layer(kind, 32, 256).case(BF16, training=True)
    for batch in (1, 32):
        yield _Layer("RNN", batch, 256).case(F32)
    yield _Layer("RNN", 32, 256).case(F32, training=True)


def _length_cases() -> Iterator[Case]:
    for way in ("packed", "lengths"):
        for kind in ("LSTM", "GRU"):
            yield _Layer(kind, 32, 256, way=way).case(F32)
            yield _Layer(kind, 32, 256, way=way).case(F32, training=True)
        yield _Layer("LSTM", 32, 512, way=way).case(F32, large=True)
    yield _Layer("LSTM", 32, 256, way="packed").case(BF16)


def _extra_cases() -> Iterator[Case]:
    for batch, hidden, projected in ((1, 512, 128), (32, 256, 128), (32, 512, 128)):
        layer = _Layer("LSTM", batch, hidden, way="projection", options={"proj_size": projected})
        yield layer.case(F32, large=(batch, hidden) == (32, 512))
        if hidden == 256:
            yield layer.case(F32, training=True)
    for way, options in (("layer_norm", {"layer_norm": True}), ("zoneout", {"zoneout": (KEEP_H, KEEP_C)})):
        for batch in (1, 32):
            layer = _Layer("LSTM", batch, 256, way=way, options=options)
            yield layer.case(F32, baseline="torch, in a Python loop")
            yield layer.case(F32, training=True, baseline="torch, in a Python loop")


def _gpu_cases() -> Iterator[Case]:
    """All that cuDNN chooses its algorithm by: type, cell, batch, length and width."""
    for kind in ("LSTM", "GRU"):
        for dtype in (BF16, F16, F32):
            for steps in (128, 1024):
                for batch in (1, 16, 64):
                    for hidden in (128, 256, 512, 768, 1024, 1536):
                        layer = _Layer(kind, batch, hidden, steps, device="cuda")
                        chosen = hidden in (128, 512, 1024) if steps == 128 else (batch, hidden) == (16, 768)
                        large = not chosen or (dtype is not BF16 and batch == 16 and steps == 128)
                        yield layer.case(dtype, large=large)
                        yield layer.case(dtype, training=True, large=large)
        for hidden in (256, 768):
            layer = _Layer(kind, 64, hidden, way="packed", device="cuda")
            yield layer.case(BF16)
            yield layer.case(BF16, training=True)
    yield _Layer("LSTM", 16, 768, way="loop", device="cuda").case(BF16, baseline="torch, in a Python loop")


# ---- layers ----


@dataclass(frozen=True)
class _Layer:
    """One layer of a network over T steps of B samples. `way`: plain (""), or what is special about it. `variant`: a rung."""

    kind: str
    batch: int
    hidden: int
    steps: int = STEPS
    way: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    variant: str | None = None

    @property
    def state(self) -> int:
        return self.options.get("proj_size", self.hidden)

    @property
    def lengths(self) -> list[int]:
        """From 1 to T in no order, (T + 1) / 2 on average, where the samples differ."""
        if self.way not in ("packed", "lengths"):
            return [self.steps] * self.batch
        return [1 + (round((k + 0.5) * self.steps / self.batch) * 37) % self.steps for k in range(self.batch)]

    @property
    def weights(self) -> int:
        projection = self.state * self.hidden if "proj_size" in self.options else 0
        return GATES[self.kind] * self.hidden * (self.hidden + self.state) + projection

    def case(self, dtype: torch.dtype, training: bool = False, **more: Any) -> Case:
        """Training: forward and backward, gradients of the input and of every parameter."""
        kind = self.kind.lower() + (f"[{self.variant}]" if self.variant else "")
        name = ".".join(filter(None, (kind, self.way, "training" if training else "")))
        shape = (self.steps, self.batch, self.hidden, *([self.state] if self.state != self.hidden else []))
        rows, passes = sum(self.lengths), 3 if training else 1
        # Inference: x, y, weights. Training: x, dy, y, dx, and weights with their gradients.
        traffic = (rows * (self.hidden + self.state) + self.weights) * dtype.itemsize * (2 if training else 1)
        flops = 2.0 * passes * rows * self.weights
        build = self._build(dtype, training)
        return Case("lstm", name, shape, dtype, build, flops, traffic, device=self.device, **more)

    def _build(self, dtype: torch.dtype, training: bool) -> Build:
        def build(device: torch.device) -> Candidates:
            from dlops import nn as modules

            mine = getattr(modules, self.kind)(self.hidden, self.hidden, **self.options).to(device, dtype).train(training)
            x = torch.randn(self.steps, self.batch, self.hidden, device=device).to(dtype)
            if self.way in LOOPS:
                loop = LOOPS[self.way]
                return _candidates(lambda t: mine(t)[0], mine, lambda t: loop(mine, t), mine, x, training)
            stock = getattr(nn, self.kind)(self.hidden, self.hidden, **self.options).to(device, dtype).train(training)
            mine.load_state_dict(stock.state_dict())
            if self.way == "packed":
                return self._packed(mine, stock, x, training)
            if self.way == "lengths":
                lengths = torch.tensor(self.lengths)
                where = lengths.to(device)
                padded = _padded(stock, lengths)
                return _candidates(lambda t: mine(t, lengths=where)[0], mine, padded, stock, x, training)
            ours = _rung(mine, self.variant) if self.variant else lambda t: mine(t)[0]
            return _candidates(ours, mine, lambda t: stock(t)[0], stock, x, training)

        return build

    def _packed(self, mine: nn.Module, stock: nn.Module, x: Tensor, training: bool) -> Candidates:
        """Packed already: what a network of several layers, or a data loader, hands over."""
        packed = pack_padded_sequence(x, torch.tensor(self.lengths), enforce_sorted=False)

        def call(module: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda rows: module(packed._replace(data=rows))[0].data

        return _candidates(call(mine), mine, call(stock), stock, packed.data, training)


def _rung(layer: Any, variant: str) -> Callable[[Tensor], Tensor]:
    from dlops import functional

    weights = list(layer.parameters())
    return lambda x: functional.lstm(x, None, weights, True, 1, 0.0, layer.training, False, False, variant=variant)[0]


def _padded(module: nn.Module, lengths: Tensor) -> Callable[[Tensor], Tensor]:
    """Padded sequences in any order by torch: packed and sorted, run, padded and put back."""

    def forward(x: Tensor) -> Tensor:
        packed: PackedSequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0], total_length=len(x))[0]

    return forward


def _candidates(
    ours: Callable[[Tensor], Tensor], mine: nn.Module, theirs: Callable[[Tensor], Tensor], stock: nn.Module, x: Tensor,
    training: bool,
) -> Candidates:  # fmt: skip
    """Both without gradients, or both forward and backward. torch.compile runs torch's layers as they are: nothing to compile."""
    if training:
        with torch.no_grad():
            dy = torch.randn_like(theirs(x))
        built = Candidates(dlops=_training(ours, mine, x, dy), stock=_training(theirs, stock, x, dy))
    else:
        built = Candidates(dlops=_inference(ours, x), stock=_inference(theirs, x))
    return replace(built, dlops=_forced(built.dlops)) if x.is_cuda else built


def _forced(run: Callable[[], object]) -> Callable[[], object]:
    """Our kernels, where "auto" might take torch's: on a GPU these figures are what it is decided by."""

    def ours() -> object:
        with dlops.backend("dlops"):
            return run()

    return ours


def _inference(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return forward(x)

    return run


def _training(
    forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, dy: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    leaves: Sequence[Tensor] = [x.requires_grad_(), *module.parameters()]
    return lambda: torch.autograd.grad(forward(x), leaves, dy)


# ---- cells ----


def _cell(kind: str, batch: int, hidden: int, dtype: torch.dtype) -> Build:
    """Parameters that need no gradient instead of torch.no_grad(), which costs as much as a small cell."""

    def build(device: torch.device) -> Candidates:
        from dlops import nn as ours

        stock = getattr(nn, f"{kind}Cell")(hidden, hidden).to(device, dtype).requires_grad_(False)
        mine = getattr(ours, f"{kind}Cell")(hidden, hidden).to(device, dtype).requires_grad_(False)
        mine.load_state_dict(stock.state_dict())
        x, h, c = (torch.randn(batch, hidden, device=device).to(dtype) for _ in range(3))
        hx = (h, c) if kind == "LSTM" else h
        own, theirs = (lambda: mine(x, hx)), (lambda: stock(x, hx))
        return Candidates(dlops=_forced(own) if x.is_cuda else own, stock=theirs, compilable=theirs)

    return build


# ---- what torch has no layer for, as one writes it: x [T, B, I] -> [T, B, H], with the parameters of `layer` ----


def _cell_loop(layer: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    output = []
    for step in x.unbind():
        h, c = torch.lstm_cell(step, (h, c), layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
        output.append(h)
    return torch.stack(output)


def _zoneout_loop(layer: Any, x: Tensor) -> Tensor:
    """Krueger et al. 2016, equations 5 and 6: a cell of torch's, and what stays as it was."""

    def mix(before: Tensor, after: Tensor, share: float) -> Tensor:
        if not layer.training:
            return torch.lerp(after, before, share)
        return torch.where(torch.empty_like(before, dtype=torch.bool).bernoulli_(share), before, after)

    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    output = []
    for step in x.unbind():
        next_h, next_c = torch.lstm_cell(step, (h, c), *weights)
        h, c = mix(h, next_h, KEEP_H), mix(c, next_c, KEEP_C)
        output.append(h)
    return torch.stack(output)


def _layer_norm_loop(layer: Any, x: Tensor) -> Tensor:
    """Ba et al. 2016, equations 20 to 22. The input's products of all steps at once, which is what can be had for free."""
    size, hidden = layer.weight_hh_l0.shape[:1], layer.hidden_size
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    inputs = F.layer_norm(F.linear(x, layer.weight_ih_l0), size, layer.norm_ih_l0, bias)
    h = c = x.new_zeros(x.shape[1], hidden)
    output = []
    for step in inputs.unbind():
        gates = step + F.layer_norm(F.linear(h, layer.weight_hh_l0), size, layer.norm_hh_l0)
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * F.layer_norm(c, (hidden,), layer.norm_cell_weight_l0, layer.norm_cell_bias_l0).tanh()
        output.append(h)
    return torch.stack(output)


LOOPS = {"loop": _cell_loop, "zoneout": _zoneout_loop, "layer_norm": _layer_norm_loop}
