"""Bugs for tests/simt/test_planted.py: every barrier of the rungs `persistent` and `fused_cell`, their two exchanged matrices,
layouts, and what a step reads ahead."""

from __future__ import annotations

import math

import torch

from dlops.reference.lstm import GATES
from dlops.study._runner import _installed
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

STATIONARY, FORWARD, BACKWARD = (
    f"csrc/lstm/{name}.cuh" for name in ("stationary", "persistent", "persistent_backward")
)
TURNS = "csrc/lstm/turns.h"

# Of [dx, dh0, dc0, dgates_x, dgates_h, ...], in recurrence_backward's order.
NEEDS = [int(i in (1, 2, 3, 4)) for i in range(14)]


def _run(variant, cell, steps, batch, hidden, dtype=torch.float32, backward=False, **options):
    """Forward: [y, h, c, c after every step] (c: lstm), and what is saved where no row is absent. backward: gradients of the
    initial state and the gates. Sizes: nine slices on the runner's eight processors, so that some blocks run ahead."""
    generator = torch.Generator().manual_seed(steps * 1000 + batch * 100 + hidden)
    randn = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    gates = GATES[cell] * hidden
    w = (randn(gates, hidden) / math.sqrt(hidden)).to(dtype)
    x, b_ih, b_hh = randn(steps, batch, gates), randn(gates).to(dtype), randn(gates).to(dtype)
    h0, c0 = randn(batch, hidden).to(dtype), randn(batch, hidden).to(dtype) if cell == "lstm" else None
    made = {name: make(generator) for name, make in options.items() if callable(make)}
    extras = [made.get(name) for name in ("dropout", "reset", "keep_h", "keep_c", "lengths")]
    settings = (None, None, None, *extras, None, cell, options.get("reverse", False), False, 0.0, 0.0, 1e-5)
    # The CPU, which it is compared with, has rungs of its own: there the variant is the default.
    variant = variant if getattr(_installed, "tables", None) is not None else ""
    y, h, c, saved, cells, *_ = torch.ops.dlops.recurrence(
        x, w, None, None, None, None, None, b_ih, b_hh, h0, c0, *settings, True, True, variant
    )
    results = [y, h, c, cells] if made.get("lengths") is not None else [y, h, c, cells, saved]
    if backward:
        dy, dh, dcn = (randn(*t.shape).to(dtype) for t in (y, h, c))
        dc = randn(*cells.shape) if cell == "lstm" else None
        results = torch.ops.dlops.recurrence_backward(
            dy, dh, dcn if cell == "lstm" else None, dc, None, w, None, None, h0, c0, y, saved,
            cells if cell == "lstm" else None, None, None, *settings, NEEDS if cell == "lstm" else [0, 1, 0, 1, 1] + [0] * 9,
            variant,
        )  # fmt: skip
    return [r.float() for r in results if r.numel()]


def _masks(steps, batch, hidden, share=0.3):
    def mask(*size):
        return lambda generator: torch.rand(size, generator=generator) < share

    return dict(
        dropout=lambda generator: torch.bernoulli(torch.full((batch, hidden), 0.7), generator=generator) / 0.7,
        reset=mask(steps, batch),
        keep_h=mask(steps, batch, hidden),
        keep_c=mask(steps, batch, hidden),
    )


def _lengths(steps, batch):
    return lambda generator: torch.randint(0, steps + 1, (batch,), generator=generator)


HALF = torch.float16
# K of 300 float32 is 19 spans of 64 bytes: a warp takes three, in two rounds. Two groups of samples.
WIDE, LARGE = (3, 20, 300), (4, 37, 136)


def persistent_float():
    return _run("persistent", "lstm", 4, 20, 70)


def persistent_wide():
    return _run("persistent", "rnn_relu", *WIDE)


def persistent_options():
    return [
        *_run("persistent", "lstm", 5, 9, 70, **_masks(5, 9, 70)),
        *_run("persistent", "gru", 5, 9, 70, lengths=_lengths(5, 9), reverse=True, **_masks(5, 9, 70)),
    ]


def persistent_half():
    return _run("persistent", "lstm", *LARGE, HALF)


def persistent_half_small():
    return _run("persistent", "gru", 4, 11, 70, HALF)


def persistent_backward_float():
    return [
        *_run("persistent", "lstm", 5, 20, 70, backward=True, **_masks(5, 20, 70)),
        *_run("persistent", "gru", 5, 9, 70, backward=True, lengths=_lengths(5, 9), reverse=True, **_masks(5, 9, 70)),
    ]


def persistent_backward_half():
    return [
        *_run("persistent", "lstm", *LARGE, HALF, backward=True),
        *_run("persistent", "gru", 4, 11, 70, HALF, backward=True),
    ]


def fused_float():
    return [*_run("fused_cell", "lstm", 4, 37, 70), *_run("fused_cell", "gru", 4, 9, 70, lengths=_lengths(4, 9))]


def fused_backward_float():
    return _run("fused_cell", "gru", 4, 9, 70, backward=True)


CALLS = [
    persistent_float, persistent_wide, persistent_options, persistent_half, persistent_half_small, persistent_backward_float,
    persistent_backward_half, fused_float, fused_backward_float,
]  # fmt: skip
# float16: the CPU does not round the gradients of the gates before it multiplies them by W_hh.
TOLERANCES = {
    persistent_half: 5e-3,
    persistent_half_small: 5e-3,
    persistent_backward_half: 2e-2,
}
UNITS = {
    call: f"csrc/lstm/launch_{rung}_{part}_{dtype}.cu"
    for call, rung, part, dtype in (
        (persistent_float, "persistent", "forward", "f32"),
        (persistent_wide, "persistent", "forward", "f32"),
        (persistent_options, "persistent", "forward", "f32"),
        (persistent_half, "persistent", "forward", "f16"),
        (persistent_half_small, "persistent", "forward", "f16"),
        (persistent_backward_float, "persistent", "backward", "f32"),
        (persistent_backward_half, "persistent", "backward", "f16"),
        (fused_float, "fused", "forward", "f32"),
        (fused_backward_float, "fused", "backward", "f32"),
    )
}


def _bug(name, call, file, old, new, count=1):
    return Bug(f"lstm_turns_{name}", [Edit(file, old, new, count)], call, [UNITS[call]], TOLERANCES.get(call, 1e-3))


def _without(name, call, file, old):
    return _bug(name, call, file, old, "")


SLICES = "      __syncthreads();  // the slices are there\n"
SUMS = "        __syncthreads();  // all warps' sums are there\n"
READ = "        if (more) __syncthreads();  // and read\n"
MEETING = "      if constexpr (resident) ptx::grid_sync();  // the next matrix is whole\n"
BUGS = [
    # barriers
    _without("slices", persistent_float, FORWARD, SLICES),
    _without("slices_half", persistent_half, FORWARD, SLICES),
    _without("sums", persistent_float, FORWARD, SUMS),
    _without("sums_backward", persistent_backward_half, FORWARD, SUMS),
    _without("sums_fused", fused_float, FORWARD, SUMS),
    _without("read", persistent_half_small, FORWARD, READ),
    _without("read_backward", persistent_backward_float, FORWARD, READ),
    _without("meeting", persistent_float, FORWARD, MEETING),
    _bug("meeting_of_block", persistent_float, FORWARD, "ptx::grid_sync();", "__syncthreads();"),
    _without("meeting_half", persistent_half, FORWARD, MEETING),
    _without("meeting_backward", persistent_backward_float, FORWARD, MEETING),
    # the two matrices
    _bug("one_matrix", persistent_float, FORWARD, "(turn + 1) % 2 * turns.exchanged", "turn % 2 * turns.exchanged"),
    _bug("other_matrix", persistent_half, FORWARD, "+ turn % 2 * turns.exchanged", "+ (turn + 1) % 2 * turns.exchanged"),
    _bug("matrix_backward", persistent_backward_half, FORWARD,
         "+ turn % 2 * turns.exchanged", "+ (turn + 1) % 2 * turns.exchanged"),
    _bug("matrix_fused", fused_float, FORWARD, "(turn + 1) % 2 * turns.exchanged", "turn % 2 * turns.exchanged"),
    _bug("gate_lost", persistent_backward_half, BACKWARD, "exchange[gate * turns.segment + cell.unit]", "exchange[cell.unit]"),
    _bug("last_group", persistent_half, FORWARD, "p.batch - part.group * Tile::kRows", "p.batch - part.group * Tile::kRows - 1"),
    # parts
    _bug("next_group", persistent_float, FORWARD, "part.group >= turns.groups", "part.group + 1 >= turns.groups"),
    _bug("next_slice", persistent_float, FORWARD, "columns += (resident ? 1 : gridDim.x) * slice_size;", ""),
    _bug("next_slice_fused", fused_float, FORWARD, "(resident ? 1 : gridDim.x) * slice_size", "slice_size"),
    _bug("kept_slice", persistent_half, FORWARD, "kept + i * slice_size", "kept"),
    _bug("first_slice", fused_float, FORWARD, "(turns.packed) + blockIdx.x * slice_size", "(turns.packed)"),
    _bug("step_ahead", persistent_half_small, FORWARD, "more ? turn : turn + 1", "turn"),
    _bug("part_ahead", persistent_float, FORWARD, "more ? turn : turn + 1", "turn + 1"),
    _bug("element_lost", persistent_half, FORWARD, "threadIdx.x) + e * kThreads", "threadIdx.x)"),
    _bug("unit_edge", persistent_float, FORWARD, "to.unit < p.hidden", "to.unit < p.hidden - 1"),
    # slices
    _bug("slice_gate", persistent_half, FORWARD,
         "column / kOctet % Pass::kColumns", "column / kOctet / Tile::O % Pass::kColumns"),
    _bug("slice_octet", persistent_half, FORWARD,
         "slice * Tile::kUnits + octet * kOctet + column % kOctet", "slice * Tile::kUnits + column % kOctet"),
    _bug("slice_edge", persistent_backward_half, FORWARD, "unit < p.hidden && in_segment < p.hidden", "unit < p.hidden"),
    _bug("gate_order", persistent_float, FORWARD,
         "(column * p.hidden + unit) * p.hidden + k", "((kColumns - 1 - column) * p.hidden + unit) * p.hidden + k"),
    _bug("transposed", persistent_float, FORWARD,
         "(column * p.hidden + unit) * p.hidden + k", "(column * p.hidden + k) * p.hidden + unit"),
    _bug("gate_order_backward", persistent_backward_float, BACKWARD,
         "(gate * p.hidden + k) * p.hidden + unit", "((kGatesOf - 1 - gate) * p.hidden + k) * p.hidden + unit"),
    # products
    _bug("span_lost", persistent_wide, STATIONARY, "first += kWarps * Sums::kAhead", "first += 2 * kWarps * Sums::kAhead"),
    _bug("span_twice", persistent_wide, STATIONARY,
         "(first + i * kWarps) * kSpan<T>, samples_pitch", "first * kSpan<T>, samples_pitch"),
    _bug("warp_lost", persistent_wide, STATIONARY,
         "for (int warp = 0; warp < kWarps; warp++)", "for (int warp = 0; warp < kWarps - 1; warp++)"),
    _bug("rows_swapped", persistent_half, STATIONARY, "at / 16 + at / 2 % 2 * 8; }", "at / 16 * 2 + at / 2 % 2; }"),
    _bug("fragment_order", persistent_half, STATIONARY, "{low.x, high.x, low.y, high.y}", "{low.x, low.y, high.x, high.y}"),
    _bug("second_half", persistent_half, STATIONARY, "second[2] = {b.z, b.w}", "second[2] = {b.x, b.y}"),
    _bug("second_chain", persistent_backward_half, STATIONARY, "sum[0][m][n][e] + sum[1][m][n][e]", "sum[0][m][n][e]"),
    _bug("traded", persistent_float, STATIONARY, "mine = lane & partner ? high : low", "mine = lane & partner ? low : high"),
    _bug("shares", persistent_float, STATIONARY, "at / 64 * 4 + at / 32 % 2 * 2", "at / 64 * 2 + at / 32 % 2 * 4"),
    # gates and masks
    _bug("bias", persistent_half_small, FORWARD, "      if (p.b_hh) product[gate] += static_cast<float>(b_hh[gate]);\n", ""),
    _bug("reset", persistent_options, FORWARD, "    if (p.reset && reset) h = c = 0.f;\n", ""),
    _bug("next_reset", persistent_options, FORWARD, "p.reset && next_reset ? 0.f : p.dropout", "p.dropout"),
    _bug("dropout", persistent_options, FORWARD, "p.dropout ? h * dropout : h", "h"),
    _bug("kept_h", persistent_options, FORWARD, "p.keep_h ? kept_h != 0 : p.zoneout_h", "p.zoneout_h"),
    _bug("kept_c", persistent_options, FORWARD, "p.keep_c ? kept_c != 0 : p.zoneout_c", "p.zoneout_c"),
    _bug("c_lost", persistent_float, FORWARD, "      turns.c[of_state] = c;\n", ""),
    _bug("ended", fused_float, FORWARD, "    if (!at.there) return pad_unit<T>(p, at, cell.sample, cell.unit);\n", ""),
    _bug("ends", persistent_backward_float, BACKWARD, "ends = step + 1 < length", "ends = step + 2 < length"),
    _bug("last", persistent_backward_float, BACKWARD, "last = step == length - 1", "last = step == p.steps - 1"),
    _bug("reset_backward", persistent_backward_float, BACKWARD, "p.reset && ended_reset ? 0.f : p.dropout", "p.dropout"),
    _bug("reset_carried", persistent_backward_float, BACKWARD, "was_reset = p.reset && reset", "was_reset = false"),
    _bug("dropout_backward", persistent_backward_float, BACKWARD, "fmaf(dropout, product[0], dh)", "product[0] + dh"),
    _bug("kept_h_backward", persistent_backward_float, BACKWARD, "part(keep_h, dh)", "0.f"),
    _bug("through_z", fused_backward_float, BACKWARD, "(kCell == Cell::lstm ? 0.f : d.before)", "0.f"),
    _bug("given_before", persistent_backward_half, BACKWARD,
         "const bool given = !at.first ||", "const bool given = !at.first &&"),
]  # fmt: skip
