"""Recurrent networks out of single layers: what runs where, the masks, and the loop over layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from dlops import _backend
from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels, ops
from dlops._ops.lstm import GATES, Gates, Recurrence, Tensors, compose_gates, compose_recurrence, on_cuda, packed, run
from dlops.functional import _lstm_rules
from dlops.functional._checks import DTYPES, check_optional, check_tensors, supported_tensor
from dlops.functional._lstm_steps import by_steps
from dlops.functional.linear import linear
from dlops.functional.norm import layer_norm


class Extras(NamedTuple):
    """What torch's functions do not have."""

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    zoneout: tuple[float, float] = (0.0, 0.0)  # of h and of c
    recurrent_dropout: float = 0.0
    norms: Sequence[Sequence[Tensor]] | None = None
    states: bool = False
    variant: str | None = None

    @property
    def needed(self) -> bool:
        """Whether torch's function would not do. (It knows batch_sizes.)"""
        masks = self.lengths is not None or self.reset is not None
        return masks or any(self.zoneout) or bool(self.recurrent_dropout or self.norms or self.states or self.variant)


def network(
    cell: str, input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, extras: Extras,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(output, h_n, c_n, cells); c_n and cells are None where there are none."""
    state = (None, None) if hx is None else tuple(hx) if cell == "lstm" else (hx, None)
    check_tensors(cell, ("input", input), *((f"params[{i}]", p) for i, p in enumerate(params)))
    check_optional(cell, ("hx[0]", state[0]), ("hx[1]", state[1]), ("lengths", extras.lengths), ("reset", extras.reset))
    if extras.lengths is not None and extras.lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{cell}: lengths must be of torch.int64 or torch.int32: got {extras.lengths.dtype}")
    layers = _split(cell, params, has_biases, num_layers * (2 if bidirectional else 1))
    dims, size = 3 if extras.batch_sizes is None else 2, layers[0][0].shape[1]
    if input.dim() != dims:
        raise RuntimeError(f"{cell}: input must have {dims} dimensions{' (it is packed)' * (dims == 2)}: got {input.dim()}")
    if input.shape[-1] != size:
        raise RuntimeError(f"{cell}: input.size(-1) must be equal to input_size: expected {size}, got {input.shape[-1]}")
    input, *rest = _autocast(input, *state)
    state = tuple(rest)
    layers = [_autocast(*weights) for weights in layers]
    tensors = [input, *state, *(w for weights in layers for w in weights)]
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    hidden, width = layers[0][1].shape[0] // GATES[cell], layers[0][1].shape[1]

    def plan(use: bool, reason: str) -> Plan:
        rows = input.shape[:-1].numel()
        macs = sum(w.numel() for weights in layers for w in weights if w is not None and w.dim() == 2)
        size = input.element_size()
        traffic = rows * (input.shape[-1] + width) * size + macs * size
        device, flops = input.device, 2 * rows * macs
        return make_plan("recurrence", use, reason, device=device, variant=extras.variant, flops=flops, bytes=traffic)

    slower = None
    if not extras.needed:
        slower = _lstm_rules.slower(cell, input, layers, extras.batch_sizes, needs_grad, train, on_cuda(input))
    ours = choose(cell, _unsupported(input, tensors[1:]), plan, slower)
    if not ours and not extras.needed and not transforming():
        return _torch(cell, input, state, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, extras)

    lengths, offsets = _where(extras, input, state[0])
    batch = lengths.shape[0] if offsets is not None else input.shape[0 if batch_first else 1]
    results: list[tuple[Tensor, ...]] = []
    x = input
    for i in range(num_layers):
        made = []
        for d in range(2 if bidirectional else 1):
            k = len(results)
            h0, c0 = (None if s is None else s[k] for s in state)
            norms = None if extras.norms is None else extras.norms[k]
            rows = x.shape[:-1]
            masks = _masks(cell, extras, train, batch, rows, width, hidden, x.device)
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
        if cuda and lengths is not None and offsets is None:  # NaN there would reach w_ih's gradient
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


def _split(cell: str, params: Sequence[Tensor], has_biases: bool, count: int) -> list[tuple[Tensor | None, ...]]:
    """(w_ih, w_hh, b_ih, b_hh, w_hr) of every layer and direction."""
    per = len(params) // max(count, 1)
    least = 4 if has_biases else 2
    if per * count != len(params) or per not in ((least, least + 1) if cell == "lstm" else (least,)):
        raise RuntimeError(
            f"{cell}: got {len(params)} params, expected {least} for each of {count} layers and directions"
            + (f" ({least + 1} with a projection)" if cell == "lstm" else "")
        )
    layers = []
    for i in range(0, len(params), per):
        own = list(params[i : i + per])
        biases = own[2:4] if has_biases else [None, None]
        layers.append((own[0], own[1], *biases, own[-1] if per > least else None))
    return layers


def _where(extras: Extras, input: Tensor, h0: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The lengths of the samples, and of a packed sequence the first row of every step, on input's device."""
    lengths, sizes = extras.lengths, extras.batch_sizes
    if sizes is None:
        return None if lengths is None else lengths.to(input.device, torch.int64), None
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
        dropout = F.dropout(torch.ones(batch, width, device=device), extras.recurrent_dropout, True)
    if train and extras.zoneout[0]:
        keep_h = torch.empty(*rows, width, dtype=torch.bool, device=device).bernoulli_(extras.zoneout[0])
    if train and extras.zoneout[1] and cell == "lstm":
        keep_c = torch.empty(*rows, hidden, dtype=torch.bool, device=device).bernoulli_(extras.zoneout[1])
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


def _unsupported(input: Tensor, others: Sequence[Tensor | None]) -> str | None:
    """Why our kernels cannot take these tensors; None if they can."""
    for t in others:
        if t is not None and t.device != input.device:
            return f"tensors on {input.device} and {t.device}"
        if t is not None and t.dtype is not input.dtype:
            return f"a tensor of {t.dtype} with an input of {input.dtype}"
    reason = supported_tensor(input, others, has_cuda_kernels)
    if reason is None and transforming():
        reason = "inside a torch.func transform or forward-mode AD"
    if reason is None and torch.jit.is_tracing():
        reason = "inside torch.jit.trace"
    return reason


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """torch's rule: under autocast recurrent layers run in the type that it names."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    wanted = torch.get_autocast_dtype(device)
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(wanted) if t is not None and t.dtype in kinds else t for t in tensors)


# ---- cells ----

#: Weights of fewer elements are packed in less time than it takes to look them up.
UNKEPT = 2048


def _kept(cell: str, w_ih: Tensor, w_hh: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if w_hh.numel() < UNKEPT and w_ih.numel() < UNKEPT:
        return None, None
    return packed(w_ih, GATES[cell]), packed(w_hh, GATES[cell])


def _is_simple(cell: str, input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor) -> bool:
    """Whether a call is one of those that are all overhead, a module's in inference on the CPU: our kernel is one step away."""
    return (
        not torch.is_grad_enabled()
        and type(w_hh) is Parameter
        and type(input) is Tensor
        and type(h) is Tensor
        and input.is_cpu
        and input.dtype is w_hh.dtype is w_ih.dtype
        and input.dtype in DTYPES
        and _backend._current != "torch"
        and _backend._recorder is None
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not transforming()
        and not torch.jit.is_tracing()
        and not on_cuda(input)
        and _lstm_rules.slower_cell(cell, input, w_hh, False, False) is None
    )



def cell_step(
    cell: str, input: Tensor, h: Tensor, c: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    variant: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(h, c), or (h,), after one step."""
    if variant is None and _is_simple(cell, input, h, w_ih, w_hh):
        return tuple(ops.recurrent_cell.default(input, w_ih, w_hh, *_kept(cell, w_ih, w_hh), b_ih, b_hh, h, c, cell))
    check_tensors(cell + "_cell", ("input", input), ("hx", h), ("w_ih", w_ih), ("w_hh", w_hh))
    input, h, c, w_ih, w_hh, b_ih, b_hh = _autocast(input, h, c, w_ih, w_hh, b_ih, b_hh)
    tensors = (input, h, c, w_ih, w_hh, b_ih, b_hh)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if variant not in (None, "fused_cell", "gates"):
        raise ValueError(f'{cell}_cell: variant must be "fused_cell" or "gates": got {variant!r}')

    def plan(use: bool, reason: str) -> Plan:
        macs, size = w_ih.numel() + w_hh.numel(), input.element_size()
        name = "recurrence" if variant == "fused_cell" else "gates"
        return make_plan(name, use, reason, device=input.device, variant=None, flops=2 * input.shape[0] * macs, bytes=macs * size)

    unsupported = _unsupported(input, tensors[1:])
    slower = _lstm_rules.slower_cell(cell, input, w_hh, needs_grad, on_cuda(input)) if variant is None else None
    if not choose(cell + "_cell", unsupported, plan, slower):
        if transforming():
            return compose_gates(F.linear(input, w_ih), F.linear(h, w_hh), b_ih, b_hh, h, c, *(None,) * 5, (cell, 0.0, 0.0, 1e-5))
        made = getattr(torch, cell + "_cell")(input, h if c is None else (h, c), w_ih, w_hh, b_ih, b_hh)
        return made if cell == "lstm" else (made,)
    if variant != "gates" and not needs_grad and not on_cuda(input):
        kept = _kept(cell, w_ih, w_hh)
        if variant is not None or kept[1] is not None or w_hh.numel() < UNKEPT or torch.compiler.is_compiling():
            return tuple(ops.recurrent_cell.default(input, w_ih, w_hh, *kept, b_ih, b_hh, h, c, cell))
    halves = F.linear(input, w_ih), F.linear(h, w_hh)
    step = (*halves, b_ih, b_hh, h if cell == "gru" else None, c, *(None,) * 5)
    if needs_grad:
        return Gates.apply((cell, 0.0, 0.0, 1e-5), *step)
    h, c, *_ = ops.gates.default(*step, cell, 0.0, 0.0, 1e-5, False)
    return (h, c) if cell == "lstm" else (h,)
