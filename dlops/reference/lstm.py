"""Plain PyTorch twins of the recurrent layers: the specification, differentiable to any order, in float32 or float64.

float16 and bfloat16 inputs are computed in float32 and rounded once, at the end. G is the number of gates, H the hidden size, P
the width of h: H, or that of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Ba et al. 2016, equation 4, over the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return normal * weight if bias is None else normal * weight + bias


def gates(
    gates_x: Tensor,
    gates_h: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    *,
    cell: str,
    norm_hh: Tensor | None = None,
    cell_weight: Tensor | None = None,
    cell_bias: Tensor | None = None,
    keep_h: Tensor | None = None,
    keep_c: Tensor | None = None,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor] | tuple[Tensor]:
    """The element-wise half of one step, without a projection: (h, c) of LSTM, else (h,), from the products.

    Args:
        gates_x, gates_h: W_ih x and W_hh h, [B, G H].
        h, c: the state before the step, [B, H]; h may be None where nothing but W_hh h needs it.
        The others as in `step`.
    """
    dtype = gates_x.dtype
    gates_x, gates_h, b_ih, b_hh, h, c, norm_hh, cell_weight, cell_bias = _exact(
        dtype, gates_x, gates_h, b_ih, b_hh, h, c, norm_hh, cell_weight, cell_bias
    )
    new_h, new_c = _activate(cell, gates_x, gates_h, b_ih, b_hh, h, c, norm_hh, cell_weight, cell_bias, eps)
    new_h = _zoneout(h, new_h, keep_h, zoneout_h).to(dtype)
    return (new_h, _zoneout(c, new_c, keep_c, zoneout_c).to(dtype)) if cell == "lstm" else (new_h,)


def step(
    cell: str,
    gates_x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    dropout: Tensor | None = None,
    norm_hh: Tensor | None = None,
    cell_weight: Tensor | None = None,
    cell_bias: Tensor | None = None,
    eps: float = 1e-5,
    keep_h: Tensor | None = None,
    keep_c: Tensor | None = None,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """One time step: the state after it from the state before it.

    LSTM: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, without peepholes. GRU: Cho et al. 2014, but
    with the reset gate behind W_hn h, as cuDNN and torch have it. The gates lie in torch's order, [i f g o] and [r z n].

    Args:
        cell: a key of GATES.
        gates_x: W_ih x, [B, G H].
        h, c: [B, P], [B, H] (LSTM). w_hh: [G H, P]. b_ih, b_hh: [G H].
        w_hr: [P, H], the recurrent projection of Sak et al. 2014, section 2 (h' = W_hr h', without their non-recurrent one).
        reset: bool [B]: h and c are zeros before the step.
        dropout: [B, P]: W_hh multiplies h * dropout. Gal & Ghahramani 2016, section 4, one mask for all steps, but on h alone
            (Semeniuta et al. 2016 drop the new values of c instead).
        norm_hh: [G H]: LayerNorm(W_hh h) norm_hh takes the place of W_hh h. Ba et al. 2016, equation 20, over all gates at
            once and without a bias of its own (b_hh is that); of GRU all three gates too.
        cell_weight, cell_bias: [H]: h' is made of LayerNorm(c') cell_weight + cell_bias; c' itself stays as it is
            (equation 22).
        keep_h, keep_c: bool [B, P], [B, H]: zoneout, where h and c stay (Krueger et al. 2016, equation 5: h' is made of c'
            before c' zones out). None: the expectation, with the probabilities zoneout_h and zoneout_c.
    """
    if reset is not None:
        h = torch.where(reset[:, None], 0.0, h)
        c = None if c is None else torch.where(reset[:, None], 0.0, c)
    gates_h = (h if dropout is None else h * dropout) @ w_hh.t()
    new_h, new_c = _activate(cell, gates_x, gates_h, b_ih, b_hh, h, c, norm_hh, cell_weight, cell_bias, eps)
    if w_hr is not None:
        new_h = new_h @ w_hr.t()
    return _zoneout(h, new_h, keep_h, zoneout_h), None if c is None else _zoneout(c, new_c, keep_c, zoneout_c)


def _activate(
    cell: str,
    gates_x: Tensor,
    gates_h: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    norm_hh: Tensor | None,
    cell_weight: Tensor | None,
    cell_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """h' and c' before projection and zoneout."""
    if norm_hh is not None:
        gates_h = layer_norm(gates_h, norm_hh, None, eps)
    gates_x = gates_x if b_ih is None else gates_x + b_ih
    gates_h = gates_h if b_hh is None else gates_h + b_hh
    if cell == "lstm":
        i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        seen = c if cell_weight is None else layer_norm(c, cell_weight, cell_bias, eps)
        return torch.sigmoid(o) * torch.tanh(seen), c
    if cell == "gru":
        r_x, z_x, n_x = gates_x.chunk(3, dim=-1)
        r_h, z_h, n_h = gates_h.chunk(3, dim=-1)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (1 - z) * n + z * h, None
    return (torch.tanh if cell == "rnn_tanh" else torch.relu)(gates_x + gates_h), None


def _exact(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """In the type that results in `dtype` are computed in."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return [None if t is None else t.to(exact) for t in tensors]


def _zoneout(old: Tensor | None, new: Tensor, keep: Tensor | None, p: float) -> Tensor:
    if keep is not None:
        return torch.where(keep, old, new)
    return new if p == 0 else p * old + (1 - p) * new


def recurrence(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    *,
    cell: str,
    lengths: Tensor | None = None,
    reverse: bool = False,
    reset: Tensor | None = None,
    keep_h: Tensor | None = None,
    keep_c: Tensor | None = None,
    norm_ih: Tensor | None = None,
    eps: float = 1e-5,
    dropout: Tensor | None = None,
    norm_hh: Tensor | None = None,
    cell_weight: Tensor | None = None,
    cell_bias: Tensor | None = None,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer in one direction: `step` along the sequence.

    Args:
        x: [T, B, I]. h0, c0: [B, P], [B, H]; None: zeros. c0 is LSTM's alone.
        w_ih, w_hh, b_ih, b_hh, w_hr: as torch's parameters of a layer. Without w_ih, x is W_ih x itself, [T, B, G H].
        cell: a key of GATES.
        lengths: [B], 0 to T: elements from there on are not read, their outputs are zeros and the state passes them by.
        reverse: from each sequence's last element to its first.
        reset: bool [T, B]. keep_h, keep_c: bool [T, B, P], [T, B, H].
        norm_ih: [G H]: LayerNorm(W_ih x) norm_ih + b_ih takes the place of W_ih x + b_ih (Ba et al. 2016, equation 20).
        dropout, norm_hh, cell_weight, cell_bias, zoneout_h, zoneout_c: of `step`.

    Returns:
        y [T, B, P]: h after every step. h [B, P] and c [B, H] after the last one. cells [T, B, H]: c after every step, not
        rounded. c and cells are None but for LSTM. All but cells in the type of the weights.
    """
    dtype, (steps, batch, _) = w_hh.dtype, x.shape
    x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, dropout, norm_ih, norm_hh, cell_weight, cell_bias = _exact(
        dtype, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, dropout, norm_ih, norm_hh, cell_weight, cell_bias
    )
    is_lstm = cell == "lstm"
    h = x.new_zeros(batch, w_hh.shape[1]) if h is None else h
    if is_lstm and c is None:
        c = x.new_zeros(batch, w_hh.shape[0] // GATES[cell])
    exists = None
    if lengths is not None:  # what lies past them is not read: 0 * NaN would be NaN
        exists = torch.arange(steps, device=x.device)[:, None, None] < lengths[:, None]  # [T, B, 1]
        x = torch.where(exists, x, 0.0)

    gates_x = x if w_ih is None else x @ w_ih.t()
    if norm_ih is not None:
        gates_x = layer_norm(gates_x, norm_ih, None, eps)

    outputs, cells = [], []
    for t in reversed(range(steps)) if reverse else range(steps):
        new_h, new_c = step(
            cell, gates_x[t], h, c, w_hh, b_ih, b_hh, w_hr,
            reset=None if reset is None else reset[t], dropout=dropout, norm_hh=norm_hh, cell_weight=cell_weight,
            cell_bias=cell_bias, eps=eps, keep_h=None if keep_h is None else keep_h[t],
            keep_c=None if keep_c is None else keep_c[t], zoneout_h=zoneout_h, zoneout_c=zoneout_c,
        )  # fmt: skip
        h = new_h if exists is None else torch.where(exists[t], new_h, h)
        outputs.append(new_h if exists is None else torch.where(exists[t], new_h, 0.0))
        if is_lstm:
            c = new_c if exists is None else torch.where(exists[t], new_c, c)
            cells.append(new_c if exists is None else torch.where(exists[t], new_c, 0.0))
    if reverse:
        outputs.reverse()
        cells.reverse()
    y = torch.stack(outputs).to(dtype)
    if not is_lstm:
        return y, h.to(dtype), None, None
    return y, h.to(dtype), c.to(dtype), torch.stack(cells)


def layers(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    *,
    cell: str,
    has_biases: bool = True,
    num_layers: int = 1,
    bidirectional: bool = False,
    norms: Sequence[tuple[Tensor, ...]] | None = None,
    masks: Sequence[dict[str, Tensor]] | None = None,
    between: Sequence[Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Layers on top of each other, each in one direction or both: what torch.nn.LSTM, GRU and RNN compute.

    Args:
        x: [T, B, I]. h0, c0: [L D, B, P], [L D, B, H], layer by layer with D directions each; None: zeros.
        params: torch's flat list: of every layer and direction w_ih, w_hh[, b_ih, b_hh][, w_hr].
        norms: of every layer and direction norm_ih, norm_hh[, cell_weight, cell_bias].
        masks: of every layer and direction the masks of `recurrence` (dropout, keep_h, keep_c).
        between: of every layer but the first, what its input is multiplied with (dropout), like that input.
        options: of `recurrence`, for all of them.

    Returns:
        y [T, B, D P], h [L D, B, P], c [L D, B, H] and the last layer's cells [T, B, D H]; the last two None but for LSTM.
    """
    directions = 1 + bidirectional
    each = len(params) // (num_layers * directions)
    last_h, last_c = [], []
    for layer in range(num_layers):
        if layer > 0 and between is not None:
            x = x * between[layer - 1]
        outputs, cells = [], []
        for direction in range(directions):
            k = layer * directions + direction
            weights = list(params[k * each : (k + 1) * each])
            if not has_biases:
                weights[2:2] = None, None
            names = "norm_ih", "norm_hh", "cell_weight", "cell_bias"
            more = options | (dict(zip(names, norms[k])) if norms else {}) | (masks[k] if masks else {})
            y, h, c, cell_states = recurrence(
                x, None if h0 is None else h0[k], None if c0 is None else c0[k], *weights,
                cell=cell, reverse=direction == 1, **more,
            )  # fmt: skip
            outputs.append(y)
            cells.append(cell_states)
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(outputs, dim=-1)
    if cell != "lstm":
        return x, torch.stack(last_h), None, None
    return x, torch.stack(last_h), torch.stack(last_c), torch.cat(cells, dim=-1)
