"""What the functions of recurrent networks refuse. torch's own messages where torch has one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from dlops._backend import transforming
from dlops._ops.lstm import GATES, Tensors
from dlops.functional._checks import check_optional, check_tensors

VARIANTS = ("cells", "fused_cell", "persistent")


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


def states_of(cell: str, hx: Any) -> Tensors:
    """(h0, c0), where there are any."""
    if hx is None:
        return None, None
    if cell != "lstm":
        check_tensors(cell, ("hx", hx))
        return hx, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"{cell}: hx must be (h0, c0), two tensors: got {type(hx).__name__}")
    check_tensors(cell, ("hx[0]", hx[0]), ("hx[1]", hx[1]))
    return tuple(hx)


def checked_layers(cell: str, params: Sequence[Tensor], has_biases: bool, count: int) -> list[tuple[Tensor | None, ...]]:
    """(w_ih, w_hh, b_ih, b_hh, w_hr) of every layer and direction."""
    check_tensors(cell, *((f"params[{i}]", p) for i, p in enumerate(params)))
    per = len(params) // max(count, 1)
    least = 4 if has_biases else 2
    if per * count != len(params) or per not in ((least, least + 1) if cell == "lstm" else (least,)):
        raise RuntimeError(
            f"{cell}: got {len(params)} params, expected {least} for each of {count} layers and directions"
            + (f" ({least + 1} with a projection)" if cell == "lstm" else "")
        )
    layers = []
    for i in range(0, len(params), per):
        w_ih, w_hh = params[i], params[i + 1]
        if w_ih.dim() != 2 or w_hh.dim() != 2 or w_ih.shape[0] != w_hh.shape[0]:
            shapes = f"{list(w_ih.shape)} and {list(w_hh.shape)}"
            raise RuntimeError(f"{cell}: params[{i}] and params[{i + 1}] must be w_ih [G H, I] and w_hh [G H, P]: got {shapes}")
        own = list(params[i : i + per])
        biases = own[2:4] if has_biases else [None, None]
        layers.append((own[0], own[1], *biases, own[-1] if per > least else None))
    return layers


def checked(
    cell: str, input: Tensor, state: Tensors, layers: Sequence[Tensors], batch_first: bool, extras: Extras
) -> Extras:
    """The extras, with lengths as int64 on input's device, after every check that reads no device's memory."""
    check_tensors(cell, ("input", input))
    check_optional(cell, ("reset", extras.reset), ("batch_sizes", extras.batch_sizes))
    packed, size = extras.batch_sizes is not None, layers[0][0].shape[1]
    dims = 2 if packed else 3
    if input.dim() != dims:
        raise RuntimeError(f"{cell}: input must have {dims} dimensions{' (it is packed)' * packed}: got {input.dim()}")
    if input.shape[-1] != size:
        raise RuntimeError(f"{cell}: input.size(-1) must be equal to input_size: expected {size}, got {input.shape[-1]}")
    lengths = extras.lengths
    if packed:
        batch = _checked_batch(cell, input, state, extras)
    else:
        batch, steps = input.shape[0 if batch_first else 1], input.shape[1 if batch_first else 0]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        lengths = None if lengths is None else _checked_lengths(cell, lengths, batch, steps, input.device)
    hidden, width = layers[0][1].shape[0] // GATES[cell], layers[0][1].shape[1]
    for name, s, size in (("hidden[0]", state[0], width), ("hidden[1]", state[1], hidden)):
        if s is not None and tuple(s.shape) != (len(layers), batch, size):
            raise RuntimeError(f"Expected {name} size {(len(layers), batch, size)}, got {list(s.shape)}")
    _check_extras(cell, input, len(layers), extras)
    return Extras(extras[0], lengths, *extras[2:])


def _checked_batch(cell: str, input: Tensor, state: Tensors, extras: Extras) -> int:
    """The number of packed sequences."""
    sizes = extras.batch_sizes
    if extras.lengths is not None:
        raise ValueError(f"{cell}: lengths must be None with batch_sizes, which say the same")
    if torch.compiler.is_compiling() or transforming() or is_fake(sizes):
        return int(sizes[0]) if state[0] is None else state[0].shape[1]
    rows = input.shape[0]
    if not sizes.numel() or bool((sizes < 1).any() or (sizes[1:] > sizes[:-1]).any()) or int(sizes.sum()) != rows:
        raise RuntimeError(
            f"{cell}: batch_sizes must be positive, must not increase and must add up to the {rows} rows of input: "
            f"got {sizes.tolist()}"
        )
    return int(sizes[0])


def _check_extras(cell: str, input: Tensor, count: int, extras: Extras) -> None:
    if extras.variant not in (None, *VARIANTS):
        raise ValueError(f"{cell}: variant must be None or one of {', '.join(VARIANTS)}: got {extras.variant!r}")
    for name, p in (("zoneout", extras.zoneout), ("recurrent_dropout", (extras.recurrent_dropout,))):
        if not isinstance(p, tuple) or not all(isinstance(q, (float, int)) and 0 <= q < 1 for q in p):
            raise ValueError(f"{cell}: {name} must lie in [0, 1): got {p!r}")
    reset = extras.reset
    if reset is not None and (reset.dtype != torch.bool or reset.shape != input.shape[:-1]):
        raise ValueError(
            f"{cell}: reset must be of torch.bool and of shape {list(input.shape[:-1])}: got {reset.dtype} {list(reset.shape)}"
        )
    if extras.norms is not None:
        each = 4 if cell == "lstm" else 2
        if len(extras.norms) != count or any(len(norms) != each for norms in extras.norms):
            raise ValueError(f"{cell}: norms must hold {each} tensors for each of {count} layers and directions")
        check_tensors(cell, *(("norms", t) for norms in extras.norms for t in norms))


def _checked_lengths(name: str, lengths: Any, batch: int, steps: int, device: torch.device) -> Tensor:
    """Lengths as int64 [B] on the device, after every check that needs no wait for the device."""
    if isinstance(lengths, Tensor):
        if lengths.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name}: lengths must be of torch.int64 or torch.int32: got {lengths.dtype}")
    elif isinstance(lengths, Sequence) and all(_is_integer(length) for length in lengths):
        lengths = torch.tensor([operator.index(length) for length in lengths], dtype=torch.int64)
    else:
        raise TypeError(
            f"{name}: lengths must be a tensor or a sequence of int: got {type(lengths).__name__} {lengths!r}"
        )
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise ValueError(f"{name}: lengths has shape {list(lengths.shape)}, expected [{batch}], one for each sequence")
    if torch.compiler.is_compiling() or lengths.is_cuda:
        within = ((lengths >= 0) & (lengths <= steps)).all()
        torch._assert_async(within, f"{name}: lengths must be 0 to the number of steps")
    elif not transforming() and not is_fake(lengths) and bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(f"{name}: lengths must be 0 to {steps}, the number of steps: got {lengths.tolist()}")
    return lengths.to(device=device, dtype=torch.int64)


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, Tensor))
