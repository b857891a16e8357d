"""Recurrent networks out of single layers: what runs where, the masks, and the loop over layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels
from dlops._ops.lstm import GATES, Recurrence, Tensors, compose_recurrence, on_cuda, run
from dlops.functional import _lstm_rules
from dlops.functional._checks import autocast, uniform_tensors
from dlops.functional._lstm_checks import Extras, checked, checked_layers, states_of
from dlops.functional._lstm_steps import by_steps
from dlops.functional.linear import linear
from dlops.functional.norm import layer_norm


def network(
    cell: str, input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, extras: Extras,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(output, h_n, c_n, cells); c_n and cells are None where there are none."""
    state = states_of(cell, hx)
    layers = checked_layers(cell, params, has_biases, num_layers * (2 if bidirectional else 1))
    extras = checked(cell, input, state, layers, batch_first, extras)
    given = (input, state)
    input, *rest = autocast(input, *state)
    state = tuple(rest)
    layers = [autocast(*weights) for weights in layers]
    tensors = [input, *state, *(w for weights in layers for w in weights)]
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

    def plan(use: bool, reason: str) -> Plan:
        rows = input.shape[:-1].numel()
        macs = sum(w.numel() for weights in layers for w in weights if w is not None and w.dim() == 2)
        size = input.element_size()
        traffic = rows * (input.shape[-1] + layers[0][1].shape[1]) * size + macs * size
        device, flops = input.device, 2 * rows * macs
        variant = extras.variant or ("persistent" if on_cuda(input) else "fused_cell")
        return make_plan("recurrence", use, reason, device=device, variant=variant, flops=flops, bytes=traffic)

    slower = None
    if not extras.needed:
        cast = input.dtype is not given[0].dtype
        slower = _lstm_rules.slower(cell, input, layers, extras.batch_sizes, needs_grad, train, on_cuda(input), cast)
    ours = choose(cell, unsupported(input, tensors[1:]), plan, slower)
    if not ours and not extras.needed and not transforming():
        return _torch(cell, *given, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras)
    if extras.variant is not None and on_cuda(input) and (extras.norms is not None or layers[0][4] is not None):
        raise ValueError(f"{cell}: variant {extras.variant!r} has neither layer norm nor a projection on CUDA")
    output, h_n, c_n, cells = _network(
        cell, input, state, layers, num_layers, dropout, train, bidirectional, batch_first, extras, ours
    )
    dtype = _result_dtype(cell, *given)
    return (output, h_n, c_n, cells) if dtype is None else (output.to(dtype), h_n.to(dtype), c_n, cells)


def _network(
    cell: str, x: Tensor, state: Tensors, layers: Sequence[Tensors], num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, extras: Extras, ours: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The loop over layers and directions."""
    lengths, offsets = _where(extras, x, state[0])
    batch = lengths.shape[0] if offsets is not None else x.shape[0 if batch_first else 1]
    hidden, width = layers[0][1].shape[0] // GATES[cell], layers[0][1].shape[1]
    results: list[tuple[Tensor, ...]] = []
    for i in range(num_layers):
        made = []
        for d in range(2 if bidirectional else 1):
            k = len(results)
            h0, c0 = (None if s is None else s[k] for s in state)
            norms = None if extras.norms is None else extras.norms[k]
            masks = _masks(cell, extras, train, batch, x.shape[:-1], width, hidden, x.device)
            given = (h0, c0, *masks, lengths, offsets)
            made.append(_layer(cell, x, layers[k], norms, given, d == 1, batch_first, train, extras, ours))
            results.append(made[-1])
        x = made[0][0] if len(made) == 1 else torch.cat([y for y, *_ in made], -1)
        if dropout and train and i + 1 < num_layers:
            x = F.dropout(x, dropout, True)
    h_n = torch.stack([r[1] for r in results])
    if cell != "lstm":
        return x, h_n, None, None
    cells = torch.cat([r[3] for r in made], -1).to(x.dtype) if extras.states else None
    return x, h_n, torch.stack([r[2] for r in results]), cells


def _layer(
    cell: str, x: Tensor, weights: Tensors, norms: Sequence[Tensor] | None, given: Tensors, reverse: bool, batch_first: bool,
    train: bool, extras: Extras, ours: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(y, h, c, cells) of one layer in one direction."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    h0, c0, dropout, reset, keep_h, keep_c, lengths, offsets = given
    norm_ih, norm_hh, cell_weight, cell_bias = (None,) * 4 if norms is None else (*norms, None, None)[:4]
    cuda = on_cuda(x)
    if norms is not None or (ours and cuda):  # the input's share of the gates, apart
        if lengths is not None and offsets is None:  # NaN there would reach w_ih's gradient
            steps = torch.arange(x.shape[1 if batch_first else 0], device=x.device)
            exists = steps < lengths[:, None] if batch_first else steps[:, None] < lengths
            x = torch.where(exists[..., None], x, 0.0)
        x, w_ih = _floats(_input_product(x, w_ih, ours and not cuda)), None
        if norms is not None:
            x = layer_norm(x, x.shape[-1:], norm_ih.to(x.dtype), None, 1e-5)
    zoneout_h, zoneout_c = (0.0, 0.0) if train else extras.zoneout  # in training by masks
    settings = (cell, reverse, batch_first and offsets is None, zoneout_h, zoneout_c, 1e-5)  # eps; a global would be a symbol
    all_ = (
        x, w_ih, w_hh, w_hr, b_ih, b_hh, h0, c0, _floats(norm_hh), _floats(cell_weight), _floats(cell_bias), dropout, reset,
        keep_h, keep_c, lengths, offsets,
    )  # fmt: skip
    if not ours:
        return compose_recurrence(all_, settings)
    if cuda and (norms is not None or w_hr is not None):
        return by_steps(all_, settings)
    variant = extras.variant or ""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in all_):
        return Recurrence.apply(settings, extras.states, variant, *all_)
    y, hn, cn, _, cells, *_ = run(all_, settings, False, extras.states, variant)
    return y, hn, cn, cells


def _input_product(x: Tensor, w_ih: Tensor, ours: bool) -> Tensor:
    """W_ih x of a whole sequence. torch's product may round an element otherwise in another batch."""
    return (linear if ours and not torch.compiler.is_compiling() else F.linear)(x, w_ih)


def _floats(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.dtype == torch.float64 else t.float()


def _where(extras: Extras, input: Tensor, h0: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The lengths of the samples, and of a packed sequence the first row of every step, on input's device."""
    lengths, sizes = extras.lengths, extras.batch_sizes
    if sizes is None:
        return lengths, None
    batch = int(sizes[0]) if h0 is None else h0.shape[1]
    lengths = (sizes > torch.arange(batch)[:, None]).sum(1)
    return lengths.to(input.device), (sizes.cumsum(0) - sizes).to(input.device)


def _masks(
    cell: str, extras: Extras, train: bool, batch: int, rows: Sequence[int], width: int, hidden: int, device: torch.device
) -> Tensors:
    """(recurrent dropout, reset, kept h, kept c): drawn of torch's generator, so that a seed, a checkpoint or a captured graph
    repeats them."""
    dropout = keep_h = keep_c = None
    if train and extras.recurrent_dropout:
        dropout = F.dropout(torch.ones(batch, width, dtype=torch.float32, device=device), extras.recurrent_dropout, True)
    if train and extras.zoneout[0]:
        keep_h = torch.rand(*rows, width, device=device) < extras.zoneout[0]
    if train and extras.zoneout[1] and cell == "lstm":
        keep_c = torch.rand(*rows, hidden, device=device) < extras.zoneout[1]
    return dropout, extras.reset, keep_h, keep_c


def _torch(
    cell: str, input: Tensor, state: Tensors, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool, extras: Extras,
) -> tuple[Tensor, Tensor, Tensor | None, None]:  # fmt: skip
    """The same by torch's function."""
    sizes = extras.batch_sizes
    if state[0] is None:
        batch = int(sizes[0]) if sizes is not None else input.shape[0 if batch_first else 1]
        w_hh = params[1]
        count = num_layers * (2 if bidirectional else 1)
        widths = w_hh.shape[1], w_hh.shape[0] // GATES[cell]
        state = tuple(input.new_zeros(count, batch, width) for width in widths)
    hx = tuple(state) if cell == "lstm" else state[0]
    function = getattr(torch._VF, cell)
    options = (list(params), has_biases, num_layers, dropout, train, bidirectional)
    if sizes is None:
        results = function(input, hx, *options, batch_first)
    else:
        results = function(input, sizes, hx, *options)
    return results[0], results[1], results[2] if cell == "lstm" else None, None


def unsupported(input: Tensor, others: Sequence[Tensor | None]) -> str | None:
    """Why our kernels cannot take these tensors; None if they can."""
    reason = uniform_tensors(input, others, has_cuda_kernels)
    if reason is None and (input.shape[-1] == 0 or any(t is not None and t.shape[0] == 0 for t in others[-2:])):
        reason = "no features"
    return reason


def _result_dtype(cell: str, input: Tensor, state: Tensors) -> torch.dtype | None:
    """Of h, where it is not the type computed in: under autocast on the CPU torch casts the factors of a GRU's products alone and
    keeps the state as it is."""
    if cell != "gru" or not input.is_cpu or not torch.is_autocast_enabled("cpu"):
        return None
    return (input if state[0] is None else state[0]).dtype
