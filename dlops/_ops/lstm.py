"""The recurrent ops for autograd and for fake tensors.

A `recurrence` is one layer in one direction; `gates` is the element-wise half of one step, whose products torch computes. First
derivatives are kernels; a second one, or a first one under a torch.func transform, differentiates the reference twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function

from dlops import _packed
from dlops._library import _C, cpu_isa, ops
from dlops._ops.derivatives import composes, derive
from dlops.reference import lstm as reference
from dlops.reference.lstm import GATES

_SAVED = {"lstm": 4, "gru": 4, "rnn_tanh": 1, "rnn_relu": 1}

# The tensors of a recurrence, in the order in which every function here takes them. Gradients exist for the first eleven.
# input: [T, B, I] ([B, T, I] with batch_first, [rows, I] packed), or W_ih x in float32 where w_ih is None.
Tensors = tuple[Tensor | None, ...]
NAMES = (
    "input", "w_ih", "w_hh", "w_hr", "b_ih", "b_hh", "h0", "c0", "norm_weight", "cell_weight", "cell_bias",
    "dropout", "reset", "keep_h", "keep_c", "lengths", "offsets",
)  # fmt: skip
DIFFERENTIABLE = 11
# cell, reverse, batch_first, zoneout_h, zoneout_c, eps
Settings = tuple[str, bool, bool, float, float, float]


# ---- the same in torch's ops ----


def compose_recurrence(tensors: Tensors, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, hn, cn, cells) by the reference twin; cn and cells are empty where the cell has none."""
    x, w_ih, w_hh, w_hr, b_ih, b_hh, h0, c0, norm, cell_weight, cell_bias, dropout, *rest, lengths, offsets = tensors
    cell, reverse, batch_first, zoneout_h, zoneout_c, eps = settings
    unpack, pack = time_first(x, lengths, offsets, batch_first)
    x, reset, keep_h, keep_c = (None if t is None else unpack(t) for t in (x, *rest))
    y, hn, cn, cells = reference.recurrence(
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, cell=cell, lengths=lengths, reverse=reverse, reset=reset, dropout=dropout,
        keep_h=keep_h, keep_c=keep_c, zoneout_h=zoneout_h, zoneout_c=zoneout_c, norm_hh=norm, cell_weight=cell_weight,
        cell_bias=cell_bias, eps=eps,
    )  # fmt: skip
    none = x.new_empty(0)
    return pack(y), hn, none if cn is None else cn, none if cells is None else pack(cells)


def time_first(x, lengths, offsets, batch_first) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Two functions: from the layout of x to [T, B, *], and back."""
    if offsets is not None:  # row offsets[t] + b holds element t of sample b
        rows = (offsets[:, None] + torch.arange(len(lengths), device=x.device)).clamp(max=x.shape[0] - 1)
        row = torch.arange(x.shape[0], device=x.device)
        step = torch.searchsorted(offsets, row, right=True) - 1
        sample = row - offsets[step]
        return (lambda t: t[rows]), (lambda t: t[step, sample])
    if batch_first:
        return (lambda t: t.transpose(0, 1)), (lambda t: t.transpose(0, 1))
    return (lambda t: t), (lambda t: t)


def compose_gates(gates_x, gates_h, b_ih, b_hh, h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c, settings):
    """(h, c), or (h,), by the reference twin."""
    cell, zoneout_h, zoneout_c, eps = settings
    return reference.gates(
        gates_x, gates_h, b_ih, b_hh, h, c, cell=cell, norm_hh=norm_weight, cell_weight=cell_weight, cell_bias=cell_bias,
        keep_h=keep_h, keep_c=keep_c, zoneout_h=zoneout_h, zoneout_c=zoneout_c, eps=eps,
    )  # fmt: skip


# ---- the kernels ----


def on_cuda(t: Tensor) -> bool:
    """Whether the CUDA kernels run: on a GPU, or in the simt runner."""
    return t.is_cuda or (t.is_cpu and _emulated())


def _emulated() -> bool:
    return _C.emulated("lstm")


_emulated._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile runs it instead of tracing it


def packed(owner: Tensor | None, gates: int) -> Tensor | None:
    """A weight as the CPU's forward pass wants it, kept with the parameter; None where that cannot be."""
    if owner is None or not owner.is_cpu or type(owner) is FakeTensor or owner.numel() == 0:
        return None
    key = ("recurrence", gates, owner.dtype, cpu_isa())
    return _packed.kept(owner, key, lambda: ops.recurrence_pack.default(owner.detach(), gates))


def run(tensors: Tensors, settings: Settings, save: bool, states: bool, variant: str) -> list[Tensor]:
    """[y, hn, cn, saved, c, hat, rstd]; what was not made is empty."""
    x, w_ih, w_hh, w_hr, *rest = tensors
    if torch.compiler.is_compiling():
        return ops.recurrent_layer.default(x, w_hh, w_ih, w_hr, *rest, *settings, save, states, variant)
    kept = (None, None, None)
    if not save and variant != "cells" and not on_cuda(x):
        gates = GATES[settings[0]]
        kept = packed(w_ih, gates), packed(w_hh, gates), packed(w_hr, 1)
    return ops.recurrence.default(x, w_hh, w_ih, w_hr, *kept, *rest, *settings, save, states, variant)


# What a compiled graph calls: the cache of packed weights is behind it, where the tracer does not look.
_OPTIONAL = ("w_ih", "w_hr", *NAMES[4:])
_library = torch.library.Library("dlops", "FRAGMENT")
_library.define(
    "recurrent_layer(Tensor input, Tensor w_hh, "
    + "".join(f"Tensor? {name}, " for name in _OPTIONAL)
    + "str cell, bool reverse, bool batch_first, float zoneout_h, float zoneout_c, float eps, bool save, bool states, "
    "str variant) -> Tensor[]"
)


def _recurrent_layer(x, w_hh, w_ih, w_hr, *rest):
    *others, cell, reverse, batch_first, zoneout_h, zoneout_c, eps, save, states, variant = rest
    settings = (cell, reverse, batch_first, zoneout_h, zoneout_c, eps)
    return run((x, w_ih, w_hh, w_hr, *others), settings, save, states, variant)


_library.define(
    "recurrent_step(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor h, Tensor? c, str cell) -> Tensor[]"
)


def run_cell(x, w_ih, w_hh, b_ih, b_hh, h, c, cell: str) -> list[Tensor]:
    """[h, c], or [h], after one step."""
    if torch.compiler.is_compiling():
        return ops.recurrent_step.default(x, w_ih, w_hh, b_ih, b_hh, h, c, cell)
    return ops.recurrent_cell.default(x, w_ih, w_hh, *kept_cell(w_ih, w_hh, cell), b_ih, b_hh, h, c, cell)


#: Weights of fewer elements are packed in less time than it takes to look them up.
UNKEPT = 2048


def kept_cell(w_ih: Tensor, w_hh: Tensor, cell: str) -> tuple[Tensor | None, Tensor | None]:
    if w_hh.numel() < UNKEPT and w_ih.numel() < UNKEPT:
        return None, None
    return packed(w_ih, GATES[cell]), packed(w_hh, GATES[cell])


_library.impl("recurrent_step", run_cell, "CPU")
_library.impl("recurrent_layer", _recurrent_layer, "CPU")
_library.impl("recurrent_layer", _recurrent_layer, "CUDA")


# ---- derivatives ----


class Recurrence(Function):
    """(y, hn, cn, c of every step) = dlops::recurrence; the last two are empty where there are none or none are wanted."""

    @staticmethod
    def forward(ctx, settings, states, variant, *tensors):
        y, hn, cn, saved, c, hat, rstd = run(tensors, settings, True, states, variant)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, y, saved, c, hat, rstd)
        ctx.options = settings, states, variant
        cells = c if states else c.new_empty(0)
        return y, hn, cn, cells

    @staticmethod
    def backward(ctx, dy, dhn, dcn, dcells):
        saved = ctx.saved_tensors
        tensors, made = saved[: len(NAMES)], saved[len(NAMES) :]
        settings, states, variant = ctx.options
        needs = ctx.needs_input_grad[3 : 3 + DIFFERENTIABLE]
        lstm = settings[0] == "lstm"
        grads = [dy, dhn, dcn if lstm else None, dcells if lstm and states else None]
        if composes(*grads):
            others = tensors[DIFFERENTIABLE:]
            compose = lambda *first: compose_recurrence((*first, *others), settings)  # noqa: E731
            found = derive(compose, tensors[:DIFFERENTIABLE], needs, grads)
        else:
            found = gradients(grads, tensors, made, settings, needs, variant)
        return None, None, None, *found, *(None,) * (len(NAMES) - DIFFERENTIABLE)


def gradients(
    grads: Sequence[Tensor | None], tensors: Tensors, made: Tensors, settings: Settings, needs: Sequence[bool], variant: str
) -> list[Tensor | None]:
    """Of the differentiable tensors, by the kernels. made: (y, saved, c, hat, rstd) of the forward pass."""
    x, w_ih, w_hh, w_hr, _, _, h0, c0, *rest = tensors
    y, saved, c, hat, rstd = made
    present = lambda t: t if t.numel() else None  # noqa: E731
    dy, dhn, dcn, dc = grads
    cuda = on_cuda(y)
    of_x, of_w_ih, of_w_hh, of_w_hr, of_b_ih, of_b_hh, of_h0, of_c0, *of_norms = needs
    shared = settings[0] != "gru"  # one gradient for both halves of the gates
    if cuda:
        gates_x = of_x or of_b_ih or (shared and (of_w_hh or of_b_hh))
        gates_h = not shared and (of_w_hh or of_b_hh)
        wanted = [False, of_h0, of_c0, gates_x, gates_h, *(False,) * 8, of_w_hh]
    else:
        of_gates = of_x and w_ih is None
        of_weights = (of_w_ih, of_w_hh, of_w_hr, of_b_ih, of_b_hh)
        wanted = [of_x and not of_gates, of_h0, of_c0, of_gates, False, *of_weights, *of_norms, False]
    results = iter(
        ops.recurrence_backward.default(
            dy, dhn, dcn, dc, None if w_ih is None else x, w_hh, w_ih, w_hr, h0, c0, y, saved, present(c), present(hat),
            present(rstd), *rest, *settings, [int(w) for w in wanted], variant,
        )
    )  # fmt: skip
    dx, dh0, dc0, dgates_x, dgates_h, dw_ih, dw_hh, dw_hr, db_ih, db_hh, *dnorms, h_before = (
        next(results) if want else None for want in wanted
    )
    if cuda:
        flat = lambda t: t.reshape(-1, t.shape[-1])  # noqa: E731
        hidden_side = dgates_x if shared else dgates_h
        if of_w_hh:
            dw_hh = flat(hidden_side).to(w_hh.dtype).t() @ flat(h_before)
        db_ih = flat(dgates_x).sum(0) if of_b_ih else None
        db_hh = flat(hidden_side).sum(0) if of_b_hh else None
    dx = dgates_x if w_ih is None and of_x else dx
    found = [dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh, dh0, dc0, *dnorms]
    return [None if not need else g.to(t.dtype) for g, t, need in zip(found, tensors, needs)]


class Gates(Function):
    """(h, c) = dlops::gates, or (h,). settings: cell, zoneout_h, zoneout_c, eps."""

    @staticmethod
    def forward(ctx, settings, *tensors):
        h, c, saved, hat, rstd = ops.gates.default(*tensors, *settings, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, saved, hat, rstd)
        ctx.settings = settings
        return (h, c) if settings[0] == "lstm" else (h,)

    @staticmethod
    def backward(ctx, dh_out, dc_out=None):
        *tensors, saved, hat, rstd = ctx.saved_tensors
        gates_x, _, b_ih, b_hh, h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c = tensors
        settings = ctx.settings
        needs = ctx.needs_input_grad[1:10]
        if composes(dh_out, dc_out):
            compose = lambda *first: compose_gates(*first, keep_h, keep_c, settings)  # noqa: E731
            found = derive(compose, tensors[:9], needs, [dh_out, dc_out][: 2 if settings[0] == "lstm" else 1])
            return None, *found, None, None
        dx, dh_gates, bias_rows, dh, dc, *dnorms = ops.gates_backward.default(
            dh_out, dc_out, gates_x, h, c, saved, hat if hat.numel() else None, rstd if rstd.numel() else None, norm_weight,
            cell_weight, cell_bias, keep_h, keep_c, *settings,
        )  # fmt: skip
        hidden_side = dh_gates if norm_weight is None else bias_rows
        sums = [dx.sum(0) if needs[2] else None, hidden_side.sum(0) if needs[3] else None]
        sums += [g.sum(0) if need else None for g, need in zip(dnorms, needs[6:9])]
        found = [dx, dh_gates, *sums[:2], dh, dc, *sums[2:]]
        return None, *(g.to(t.dtype) if need else None for g, t, need in zip(found, tensors, needs)), None, None


# ---- fake tensors: shapes as in csrc/lstm/ops.cpp ----


def _rows(input: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return input.new_empty((*input.shape[:-1], width), dtype=dtype)


def _batch(input: Tensor, lengths: Tensor | None, offsets: Tensor | None, batch_first: bool) -> int:
    return lengths.shape[0] if offsets is not None else input.shape[0 if batch_first else 1]


def _fake_recurrence(input, w_hh, norm, lengths, offsets, cell, batch_first, save, states):
    hidden, state = w_hh.shape[0] // GATES[cell], w_hh.shape[1]
    batch = _batch(input, lengths, offsets, batch_first)
    floats = lambda wanted, width: _rows(input, width, torch.float32) if wanted else _none(input)  # noqa: E731
    rows = input.shape[0] if offsets is not None else input.shape[0] * input.shape[1]
    lstm = cell == "lstm"
    return [
        _rows(input, state, w_hh.dtype),
        w_hh.new_empty((batch, state)),
        w_hh.new_empty((batch, hidden)) if lstm else _none(input),
        floats(save, _SAVED[cell] * hidden),
        floats(lstm and (save or states), hidden),
        floats(save and norm is not None, w_hh.shape[0]),
        input.new_empty((rows,), dtype=torch.float32) if save and norm is not None else _none(input),
    ]


def _none(like: Tensor) -> Tensor:
    return like.new_empty((0,), dtype=torch.float32)


@torch.library.register_fake("dlops::recurrence")
def _(input, w_hh, w_ih, w_hr, packed_ih, packed_hh, packed_hr, *rest):
    *tensors, cell, _, batch_first, _, _, _, save, states, _ = rest
    return _fake_recurrence(input, w_hh, tensors[4], tensors[11], tensors[12], cell, batch_first, save, states)


@torch.library.register_fake("dlops::recurrent_layer")
def _(input, w_hh, w_ih, w_hr, *rest):
    *tensors, cell, _, batch_first, _, _, _, save, states, _ = rest
    return _fake_recurrence(input, w_hh, tensors[4], tensors[11], tensors[12], cell, batch_first, save, states)


@torch.library.register_fake("dlops::recurrence_backward")
def _(dy, dhn, dcn, dc, x, w_hh, w_ih, w_hr, h0, c0, y, saved, c, hat, rstd, *rest):
    *tensors, cell, _, batch_first, _, _, _, needs, _ = rest
    g, state = w_hh.shape
    hidden, batch = g // GATES[cell], _batch(y, tensors[7], tensors[8], batch_first)
    floats = lambda *shape: w_hh.new_empty(shape, dtype=torch.float32)  # noqa: E731
    width = 0 if x is None else x.shape[-1]
    make = (
        lambda: _rows(y, width, w_hh.dtype), lambda: w_hh.new_empty((batch, state)), lambda: w_hh.new_empty((batch, hidden)),
        lambda: _rows(y, g, torch.float32), lambda: _rows(y, g, torch.float32), lambda: floats(g, width),
        lambda: floats(g, state), lambda: floats(state, hidden), lambda: floats(g), lambda: floats(g), lambda: floats(g),
        lambda: floats(hidden), lambda: floats(hidden), lambda: _rows(y, state, w_hh.dtype),
    )  # fmt: skip
    return [build() for build, need in zip(make, needs) if need]


@torch.library.register_fake("dlops::recurrent_step")
def _(x, w_ih, w_hh, b_ih, b_hh, h, c, cell):
    return _fake_cell(h, cell)


@torch.library.register_fake("dlops::recurrent_cell")
def _(x, w_ih, w_hh, packed_ih, packed_hh, b_ih, b_hh, h, c, cell):
    return _fake_cell(h, cell)


def _fake_cell(h: Tensor, cell: str) -> list[Tensor]:
    return [torch.empty_like(h, memory_format=torch.contiguous_format) for _ in range(2 if cell == "lstm" else 1)]


@torch.library.register_fake("dlops::gates")
def _(gates_x, gates_h, b_ih, b_hh, h, c, norm_weight, cell_weight, cell_bias, keep_h, keep_c, cell, zh, zc, eps, save):
    batch, g = gates_x.shape
    hidden = g // GATES[cell]
    floats = lambda wanted, *shape: gates_x.new_empty(shape if wanted else (0,), dtype=torch.float32)  # noqa: E731
    norm = save and norm_weight is not None
    return [
        gates_x.new_empty((batch, hidden)),
        gates_x.new_empty((batch, hidden)) if cell == "lstm" else _none(gates_x),
        floats(save, batch, _SAVED[cell] * hidden),
        floats(norm, batch, g),
        floats(norm, batch),
    ]


@torch.library.register_fake("dlops::gates_backward")
def _(dh_out, dc_out, like, h, c, saved, hat, rstd, norm_weight, cell_weight, cell_bias, *rest):
    batch, g = like.shape
    hidden, parts = g // GATES[rest[2]], min(batch, 256)
    rows = lambda wanted, width: like.new_empty((batch, width)) if wanted else _none(like)  # noqa: E731
    sums = lambda wanted, width: like.new_empty((parts, width) if wanted else (0,), dtype=torch.float32)  # noqa: E731
    norm, cell_norm = norm_weight is not None, cell_weight is not None
    return [
        rows(True, g), rows(True, g), rows(norm, g), rows(h is not None, hidden), rows(c is not None, hidden), sums(norm, g),
        sums(cell_norm, hidden), sums(cell_norm, hidden),
    ]  # fmt: skip
