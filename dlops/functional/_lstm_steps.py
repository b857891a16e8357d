"""A recurrence as a loop over its steps: the products by torch, all else by the `gates` kernel. For CUDA, whose sequence kernels
have neither layer normalisation nor projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops._ops.lstm import GATES, Gates, Settings, Tensors, time_first


def by_steps(tensors: Tensors, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, h, c, cells) as `dlops._ops.lstm.Recurrence` returns them. The input must be W_ih x."""
    x, _, w_hh, w_hr, b_ih, b_hh, h, c, norm, cell_weight, cell_bias, dropout, reset, keep_h, keep_c, lengths, offsets = tensors
    cell, reverse, batch_first, zoneout_h, zoneout_c, eps = settings
    dtype, hidden = w_hh.dtype, w_hh.shape[0] // GATES[cell]
    unpack, pack = time_first(x, lengths, offsets, batch_first)
    x, reset, keep_h, keep_c = (None if t is None else unpack(t) for t in (x, reset, keep_h, keep_c))
    steps, batch = x.shape[:2]
    x = x.to(dtype)
    h = x.new_zeros(batch, w_hh.shape[1]) if h is None else h
    c = x.new_zeros(batch, hidden) if c is None and cell == "lstm" else c
    exists = None if lengths is None else torch.arange(steps, device=x.device)[:, None, None] < lengths[:, None]  # [T, B, 1]
    projects, at = w_hr is not None, lambda mask, t: None if mask is None else mask[t]
    outputs, cells = [], []
    for t in reversed(range(steps)) if reverse else range(steps):
        h_in, c_in = h, c
        if reset is not None:
            h_in, c_in = (None if s is None else torch.where(reset[t][:, None], 0.0, s) for s in (h, c))
        gates_h = F.linear(h_in if dropout is None else h_in * dropout.to(dtype), w_hh)
        new_h, *new_c = Gates.apply(
            (cell, 0.0 if projects else zoneout_h, zoneout_c, eps), x[t], gates_h, b_ih, b_hh, None if projects else h_in, c_in,
            norm, cell_weight, cell_bias, None if projects else at(keep_h, t), at(keep_c, t),
        )  # fmt: skip
        if projects:
            new_h = F.linear(new_h, w_hr)
            if keep_h is not None:
                new_h = torch.where(keep_h[t], h_in, new_h)
            elif zoneout_h:
                new_h = zoneout_h * h_in + (1 - zoneout_h) * new_h
        h = new_h if exists is None else torch.where(exists[t], new_h, h)
        outputs.append(new_h if exists is None else torch.where(exists[t], new_h, 0.0))
        for state in new_c:
            c = state if exists is None else torch.where(exists[t], state, c)
            cells.append(state if exists is None else torch.where(exists[t], state, 0.0))
    if reverse:
        outputs.reverse()
        cells.reverse()
    none = x.new_empty(0)
    y = pack(torch.stack(outputs)) if outputs else x.new_empty((0, batch, w_hh.shape[1]))
    return y, h, none if c is None else c, pack(torch.stack(cells)) if cells else none
