"""Bugs for tests/simt/test_planted.py: the rung `cells`, and the element-wise half of a step with its LayerNorms."""

from __future__ import annotations

import torch
from torch import Tensor

from dlops._ops.lstm import on_cuda
from dlops.reference import lstm as reference
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

REDUCE, CELL, SEQUENCE = "csrc/cuda/reduce.h", "csrc/lstm/cell.cuh", "csrc/lstm/sequence.h"
CELLS, CELLS_BACK = "csrc/lstm/cells.cuh", "csrc/lstm/cells_backward.cuh"
UNITS, ROW_NORM = "csrc/lstm/units.cuh", "csrc/lstm/row_norm.cuh"
GATES, GATES_BACK = "csrc/lstm/gates.cuh", "csrc/lstm/gates_backward.cuh"

ops = torch.ops.dlops
H0, C0, GATES_X, GATES_H, W_HH, BEFORE = 1, 2, 3, 4, 6, 13  # results of recurrence_backward


class Random:
    """Tensors, always the same."""

    def __init__(self, *seed: int):
        self.generator = torch.Generator().manual_seed(sum(seed))

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=self.generator) * scale

    def mask(self, *size: int, share: float = 0.3) -> Tensor:
        return torch.rand(size, generator=self.generator) < share


# ---- the rung `cells` ----


def _sequence(
    cell, steps, batch, hidden, *, reverse=False, lengths=None, offsets=None, extras=False, zoneout=(0.0, 0.0)
):
    """[y, hn, cn, dh0, dc0, dw_hh, dgates_x] of the rung, and c after every step. Sizes for two turns of the grid's loops."""
    r = Random(steps, batch, hidden)
    width, is_lstm = reference.GATES[cell] * hidden, cell == "lstm"
    place = (int(lengths.sum()),) if offsets is not None else (steps, batch)
    x, w = r.normal(*place, width), r.normal(width, hidden, scale=hidden**-0.5)
    biases = r.normal(width, scale=0.3), r.normal(width, scale=0.3)
    h0, c0 = r.normal(batch, hidden), r.normal(batch, hidden) if is_lstm else None
    dropout, reset, keep_h, keep_c = None, None, None, None
    if extras:
        dropout, reset = r.mask(batch, hidden, share=0.8) / 0.8, r.mask(*place)
        keep_h, keep_c = r.mask(*place, hidden), r.mask(*place, hidden) if is_lstm else None
    norms = (None, None, None)
    options = (*norms, dropout, reset, keep_h, keep_c, lengths, offsets, cell, reverse, False, *zoneout, 1e-5)
    y, hn, cn, saved, c, _, _ = ops.recurrence(
        x, w, None, None, None, None, None, *biases, h0, c0, *options, True, True, "cells"
    )
    wanted = {H0, GATES_X, GATES_H, BEFORE if on_cuda(x) else W_HH} | ({C0} if is_lstm else set())
    dy, dc = r.normal(*y.shape), r.normal(*c.shape) if is_lstm else None
    dhn, dcn = r.normal(batch, hidden), r.normal(batch, hidden) if is_lstm else None
    gradients = ops.recurrence_backward(
        dy, dhn, dcn, dc, None, w, None, None, h0, c0, y, saved, c if is_lstm else None, None, None, *options,
        [int(i in wanted) for i in range(14)], "cells",
    )  # fmt: skip
    found = dict(zip(sorted(wanted), gradients))
    if BEFORE in found:
        found[W_HH] = found[GATES_H].flatten(0, -2).t() @ found[BEFORE].flatten(0, -2)
    dgates = found[GATES_X]
    if lengths is not None and offsets is None and not on_cuda(x):  # its padding is unwritten; on CUDA it must be zeros
        dgates = torch.where(torch.arange(steps)[:, None, None] < lengths[:, None], dgates, 0.0)
    results = [y, hn, cn, c, found[H0], found.get(C0), found[W_HH], dgates]
    return [t for t in results if t is not None]


def cells_long():
    """Sums of more than one chunk."""
    return _sequence("gru", 2, 9, 300)


def cells_wide():
    """More units than the grid has threads."""
    return _sequence("rnn_relu", 1, 1, 1100)


def cells_lengths():
    lengths = torch.tensor([3, 5, 0, 1, 5, 2, 4, 5, 1, 3, 5])
    return [
        *_sequence("lstm", 5, 11, 33, lengths=lengths, extras=True, reverse=True),
        *_sequence("rnn_tanh", 5, 11, 5, lengths=lengths),
    ]


def cells_packed():
    lengths = torch.tensor([4, 4, 2, 1])
    return _sequence("lstm", 4, 4, 20, lengths=lengths, offsets=torch.tensor([0, 4, 7, 9]), zoneout=(0.2, 0.1))


# ---- the element-wise half of a step ----


def _step(cell, batch, hidden, *, norm=False, cell_norm=False, zoneout=(0.0, 0.0), masks=False):
    """The new state, and all gradients: by the CUDA kernels, or by the specification (the CPU's kernel has no LayerNorm)."""
    r = Random(batch, hidden)
    width, is_lstm = reference.GATES[cell] * hidden, cell == "lstm"
    tensors = [r.normal(batch, width), r.normal(batch, width), r.normal(width, scale=0.3), r.normal(width, scale=0.3)]
    tensors += [r.normal(batch, hidden), r.normal(batch, hidden) if is_lstm else None]
    tensors += [1 + r.normal(width, scale=0.2) if norm else None]
    tensors += [1 + r.normal(hidden, scale=0.2), r.normal(hidden, scale=0.2)] if cell_norm else [None, None]
    keep = (r.mask(batch, hidden), r.mask(batch, hidden) if is_lstm else None) if masks else (None, None)
    grads = [r.normal(batch, hidden), r.normal(batch, hidden)][: 1 + is_lstm]
    x, y, b_ih, b_hh, h, c, *norms = tensors
    if not on_cuda(x):
        leaves = [None if t is None else t.requires_grad_() for t in tensors]
        outputs = reference.gates(
            *leaves[:6], cell=cell, norm_hh=norms[0], cell_weight=norms[1], cell_bias=norms[2], keep_h=keep[0],
            keep_c=keep[1], zoneout_h=zoneout[0], zoneout_c=zoneout[1],
        )[: 1 + is_lstm]  # fmt: skip
        inputs = [t for t in leaves if t is not None]
        found = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
        return [*outputs, *(torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs))]
    options = (*norms, *keep, cell, *zoneout, 1e-5)
    h_out, c_out, saved, hat, rstd = ops.gates(x, y, b_ih, b_hh, h, c, *options, True)
    dx, dy, rows, dh, dc, *dnorms = ops.gates_backward(
        *grads, *[None] * (not is_lstm), x, h, c, saved, hat if norm else None, rstd if norm else None, *options
    )
    found = [dx, dy, dx.sum(0), (rows if norm else dy).sum(0), dh, dc, *(t.sum(0) for t in dnorms)]
    return [*[h_out, c_out][: 1 + is_lstm], *(t for t, leaf in zip(found, tensors) if leaf is not None)]


def gates_plain():
    return [
        *_step("lstm", 9, 70, masks=True),
        *_step("gru", 3, 132, zoneout=(0.2, 0.0)),
        *_step("rnn_relu", 1030, 1),
    ]


def gates_block():
    """Several warps for a sample, and blocks that take more than one."""
    return [*_step("lstm", 18, 300, norm=True, cell_norm=True), *_step("gru", 9, 132, norm=True)]


def gates_warp():
    return [*_step("lstm", 70, 41, norm=True, cell_norm=True, masks=True), *_step("lstm", 300, 3, cell_norm=True)]


def gates_long():
    """Rows that take more than one turn of the largest block."""
    return _step("lstm", 2, 2100, norm=True, cell_norm=True)


CALLS = [cells_long, cells_wide, cells_lengths, cells_packed, gates_plain, gates_block, gates_warp, gates_long]
TOLERANCES: dict = {}


FORWARD, BACKWARD = "gates_forward_f32", "gates_backward_f32"


def _bug(name, call, file, old, new, count=1, unit=None):
    launch = {CELLS: "cells", CELLS_BACK: "cells", SEQUENCE: "cells", GATES: FORWARD, GATES_BACK: BACKWARD}
    unit = unit or launch[file]
    return Bug(f"lstm_{name}", [Edit(file, old, new, count)], call, [f"csrc/lstm/launch_{unit}.cu"])


REUSE = "  __syncthreads();  // the last use of scratch is over\n"
COUNT = "hidden - first < kUnits ? static_cast<int>(hidden - first) : kUnits"
SAMPLES = "b < p.batch; b += row_step()) {\n    const Place at = place(p, step, b);\n    for (int64_t unit"
NORMALISED = "product[j][gate] = gate_normal(product[j][gate])"
MIXED = "fmaf(share, before - after, after)"

BUGS = [
    # barriers: block_reduce has both
    _bug("reduce_reuse", gates_block, REDUCE, REUSE, "", unit=FORWARD),
    _bug("reduce_written", gates_block, REDUCE, "] = a;\n  __syncthreads();\n", "] = a;\n", unit=FORWARD),
    _bug("reduce_reuse_backward", gates_block, REDUCE, REUSE, "", unit=BACKWARD),
    _bug("reduce_written_backward", gates_block, REDUCE, "] = a;\n  __syncthreads();\n", "] = a;\n", unit=BACKWARD),
    _bug("warp_for_block", gates_block, ROW_NORM, "blockDim.x > 32 ?", "blockDim.x > 128 ?", unit=FORWARD),
    # where a sample is
    _bug("reverse_starts_at_padding", cells_lengths, SEQUENCE, "? length - 1 - step", "? p.steps - 1 - step"),
    _bug("reverse_reads_ahead", cells_lengths, SEQUENCE, "turned ? t + 1 : t - 1", "t - 1"),
    _bug("reverse_padding_in_front", cells_lengths, SEQUENCE, "p.reverse && there", "p.reverse"),
    _bug("last_is_not_the_samples", cells_lengths, SEQUENCE, "step == length - 1", "step == p.steps - 1"),
    _bug("packed_padding", cells_packed, CELLS, "  if (!p.offsets) {", "  {"),
    _bug("padding_unwritten", cells_lengths, CELLS, "if (!p.offsets) {", "if (p.offsets) {"),
    _bug("padding_has_gradients", cells_lengths, CELLS_BACK, "  if (p.offsets) return;\n", "  return;\n"),
    _bug("empty_sample_loses_state", cells_lengths, CELLS, "  if (at.first) {\n", "  if (at.last) {\n"),
    _bug("empty_sample_loses_gradient", cells_lengths, CELLS_BACK, "dh = state_at<T>(p.dhn, i);", "dh = 0;"),
    # the order of a step
    _bug("reset_ignored", cells_lengths, CELLS, "  if (p.reset && p.reset[at.row]) return 0.f;\n", ""),
    _bug("reset_keeps_c", cells_lengths, CELLS, "reset ? 0.f : at.first", "at.first"),
    _bug("reset_lets_gradient_by", cells_lengths, CELLS_BACK, "carry.dc[of_state] = reset ? 0.f :", "carry.dc[of_state] ="),
    _bug("reset_lets_product_by", cells_lengths, CELLS_BACK, "if (!reset)\n", "\n"),
    _bug("dropout_of_all", cells_lengths, CELLS, "h_before<T>(p, at, b, unit);", "h_dropped<T>(p, at, b, unit);"),
    _bug("dropout_not_back", cells_lengths, CELLS_BACK, "fmaf(dropout,", "fmaf(1.f,"),
    _bug("zoneout_before_h", cells_packed, CELLS, "tanh_c = tanhf(after);", "tanh_c = tanhf(mix(p.zoneout_c, before, after));"),
    _bug("zoneout_swapped", cells_packed, CELL, MIXED, "fmaf(share, after - before, before)", unit="cells"),
    _bug("zoneout_keeps_gradient", cells_packed, CELLS_BACK, "part(1.f - share_h, dh)", "dh"),
    _bug("gates_order", cells_packed, CELL, "saved[2] = tanhf(x[2] + h[2]);", "saved[2] = tanhf(x[3] + h[3]);", unit="cells"),
    _bug("gru_reset_gate_in_front", cells_long, CELL, "fmaf(saved[0], h[2], x[2])", "fmaf(saved[0], x[2], h[2])", unit="cells"),
    _bug("last_gradient_lost", cells_packed, CELLS_BACK, "at.last ? state_at<T>(p.dhn, of_state) : ", "at.first ? 0.f : "),
    # sums and loops
    _bug("chunk_overlaps", cells_long, CELLS, "first + kChunk < p.hidden ? first + kChunk : p.hidden", "p.hidden"),
    _bug("chunk_overlaps_backward", cells_long, CELLS_BACK, "first + kChunk < rows ? first + kChunk : rows", "rows"),
    _bug("units_skipped", cells_wide, CELLS_BACK, "unit < p.hidden; unit += chunk_step(1)", "unit < p.hidden; unit += p.hidden"),
    _bug("samples_skipped", cells_long, CELLS, SAMPLES, SAMPLES.replace("p.batch", "8")),
    # the element-wise half
    _bug("units_past_end", gates_plain, UNITS, COUNT, "kUnits", unit=FORWARD),
    _bug("units_past_end_backward", gates_warp, UNITS, COUNT, "kUnits", unit=BACKWARD),
    _bug("wide_where_it_is_not", gates_plain, UNITS, "hidden % kUnits == 0 &&", "true &&", unit=FORWARD),
    _bug("samples_skipped_plain", gates_plain, GATES, "b += row_step()", "b += p.batch"),
    _bug("stale_registers", gates_long, GATES, "if (loaded_at == u.first) return;", "if (loaded_at >= 0) return;"),
    _bug("stale_gates", gates_long, GATES, "    activated = false;\n", ""),
    _bug("stale_registers_backward", gates_long, GATES_BACK, "loaded_at == u.first", "loaded_at >= 0"),
    _bug("stale_gradients_backward", gates_long, GATES_BACK, "    derived = false;\n", ""),
    _bug("zoneout_in_c_norm", gates_warp, GATES, "c_normal(c_after[j])", "c_normal(state[j])"),
    _bug("weight_in_hat", gates_warp, GATES, NORMALISED, f"{NORMALISED} * weight[j][gate]"),
    _bug("moments_of_padding", gates_warp, GATES, "m.add(v, u.count)", "m.add(v, kUnits)"),
    _bug("norm_mean_lost", gates_block, ROW_NORM, "g - mean_g - xhat", "g - xhat", unit=BACKWARD),
    _bug("sums_start_anew", gates_warp, GATES_BACK, "first ? nullptr : sums", "nullptr"),
    _bug("sums_of_part_twice", gates_warp, GATES_BACK, "b += parts", "b += parts - 1"),
    _bug("h_for_x", gates_plain, CELL, "d.h[2] *= saved[0];", "d.x[2] *= saved[0];", unit=BACKWARD),
    _bug("h_kept_lost", gates_plain, GATES_BACK, "dh_kept[j] + (kCell", "(kCell"),
]  # fmt: skip
