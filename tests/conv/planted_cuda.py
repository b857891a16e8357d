"""Bugs for tests/simt/test_planted.py: every barrier of the float32 rungs of the convolution, and edges that matter."""

from __future__ import annotations

import math

import torch

from dlops.functional import conv1d, conv2d, conv3d
from dlops.study._runner import _installed
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

CONV = {1: conv1d, 2: conv2d, 3: conv3d}


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _forward(variant, size, filters, kernel, *, groups=1, last=False, **options):
    """The CPU, which it is compared with, has rungs of its own: there the variant is the default."""
    emulated = getattr(_installed, "tables", None) is not None
    x, w = _randn(*size), _randn(filters, size[1] // groups, *kernel)
    w /= math.sqrt(w[0].numel())
    x = (_last(x) if last else x).requires_grad_()
    y = CONV[len(kernel)](x, w.requires_grad_(), groups=groups, variant=variant if emulated else None, **options)
    return x, w, y


def _before_nan(t):
    """The same values with NaN behind them in memory: who reads past the end is seen, whatever else lies there."""
    buffer = torch.full((3 * t.numel(),), math.nan)
    return buffer.as_strided(t.shape, t.stride()).copy_(t)


def _results(variant, size, filters, kernel, *, gradients="", **options):
    """y, or the gradients of `gradients` ("x", "w" or both)."""
    x, w, y = _forward(variant, size, filters, kernel, **options)
    if not gradients:
        return [y.detach()]
    dy = _randn(*y.shape) / (math.sqrt(y[0, 0].numel() * len(y)) if "w" in gradients else 1)
    dy = _before_nan(_last(dy) if options.get("last") else dy)
    return list(torch.autograd.grad(y, [{"x": x, "w": w}[name] for name in gradients], dy))


# Emulated grids have at most 8 blocks: with more tasks than that a block takes a second turn with the same shared memory.


def naive():
    """More elements than the grid has threads."""
    residual = _randn(2, 6, 13, 9)
    return [
        *_results("naive", (2, 4, 13, 9), 6, (3, 3), groups=2, padding=1, bias=_randn(6), residual=residual, activation="relu"),
        *_results("naive", (1, 2, 12, 13), 9, (3, 3), padding=2, dilation=2, padding_mode="reflect", last=True),
        *_results("naive", (1, 3, 12, 13), 9, (2, 3), padding=(0, 4), padding_mode="circular"),
    ]


def naive_backward():
    return [
        *_results("naive", (2, 6, 12, 11), 4, (3, 3), groups=2, stride=(2, 3), padding=1, gradients="xw"),
        *_results("naive", (2, 12, 5, 4), 10, (3, 3), padding=1, last=True, gradients="xw"),
    ]


def shared():
    """Two tiles of columns, ten of rows; depths of 54, which is no whole tile, and 72."""
    return [
        *_results("shared", (2, 6, 25, 25), 70, (3, 3), padding=1, bias=_randn(70), activation="silu"),
        *_results("shared", (2, 16, 25, 25), 12, (3, 3), groups=2, stride=(1, 2), padding=1),
        *_results("shared", (1, 5, 7, 7), 3, (5, 5), padding=3, padding_mode="replicate"),
    ]


def shared_last():
    """The channels of a tap in quads, and one by one."""
    return [
        *_results("shared", (2, 32, 25, 25), 70, (3, 3), groups=2, padding=1, last=True),
        *_results("shared", (3, 5, 13, 10), 7, (3, 3), padding=(1, 0), last=True),
    ]


def shared_data():
    return [
        *_results("shared", (2, 70, 25, 25), 2, (3, 3), padding=1, gradients="x"),
        *_results("shared", (2, 10, 14, 11), 16, (3, 3), groups=2, stride=2, padding=1, last=True, gradients="x"),
    ]


def shared_weight():
    """Four parts of the pixels, two tiles of rows, two of columns."""
    return _results("shared", (3, 20, 16, 17), 66, (3, 3), padding=1, gradients="w")


def shared_weight_last():
    return _results("shared", (3, 20, 16, 17), 66, (3, 3), padding=1, last=True, gradients="w")


def winograd():
    """Six blocks of tiles, two of filters, two steps of channels; tiles that reach past the edges."""
    return [
        *_results("winograd", (2, 12, 17, 19), 40, (3, 3), padding=1, bias=_randn(40), activation="silu"),
        *_results("winograd", (1, 18, 9, 12), 74, (3, 3), groups=2, padding=(2, 1), padding_mode="circular"),
    ]


def winograd_last():
    return _results("winograd", (2, 12, 17, 19), 40, (3, 3), padding=1, last=True)


def winograd_data():
    return _results("winograd", (2, 40, 13, 14), 12, (3, 3), padding=(0, 1), gradients="x")


def depthwise():
    """By columns; by rows of 16-byte chunks, with a window before, around and past the end; by single elements."""
    return [
        *_results("depthwise", (2, 6, 13, 27), 6, (3, 3), groups=6, padding=1, bias=_randn(6), activation="silu"),
        *_results("depthwise", (1, 3, 19, 11), 3, (9, 2), groups=3, padding=(4, 1)),
        *_results("depthwise", (2, 6, 9, 36), 6, (5, 5), groups=6, padding=2),
        *_results("depthwise", (1, 2, 8300), 2, (4,), groups=2, padding=3),
        *_results("depthwise", (1, 4, 9, 11), 8, (3, 3), groups=4, stride=2, padding=1),
    ]


def depthwise_last():
    return [
        *_results("depthwise", (2, 12, 13, 27), 12, (3, 3), groups=12, padding=1, last=True),
        *_results("depthwise", (1, 4, 12, 21), 4, (2, 11), groups=4, padding=(0, 5), last=True),
        *_results("depthwise", (1, 5, 9, 11), 5, (3, 3), groups=5, padding=1, last=True),
    ]


def depthwise_data():
    return [
        *_results("depthwise", (2, 6, 13, 27), 6, (3, 3), groups=6, padding=(0, 2), gradients="x"),
        *_results("depthwise", (2, 12, 13, 27), 12, (3, 2), groups=12, padding=(0, 1), last=True, gradients="x"),
        *_results("depthwise", (1, 4, 12, 14), 8, (3, 3), groups=4, stride=2, padding=1, gradients="x"),
    ]


def depthwise_weight():
    """More tasks than blocks in every kernel, and several parts."""
    return [
        *_results("depthwise", (3, 5, 29, 27), 5, (3, 3), groups=5, padding=1, gradients="w"),
        *_results("depthwise", (3, 5, 4090), 5, (4,), groups=5, padding=3, gradients="w"),
        *_results("depthwise", (2, 4, 31, 22), 8, (3, 4), groups=4, stride=(1, 2), padding=1, gradients="w"),
    ]


def depthwise_weight_rows():
    return _results("depthwise", (3, 5, 4096), 5, (4,), groups=5, padding=3, gradients="w")


def depthwise_weight_last():
    """The last has 18 parts: more than are added together at once."""
    return [
        *_results("depthwise", (3, 68, 21, 29), 68, (3, 3), groups=68, padding=1, last=True, gradients="w"),
        *_results("depthwise", (1, 4, 12, 21), 4, (2, 11), groups=4, padding=(0, 5), last=True, gradients="w"),
        *_results("depthwise", (2, 5, 9, 21), 10, (3, 3), groups=5, last=True, gradients="w"),
        *_results("depthwise", (3, 4, 62, 48), 4, (3, 3), groups=4, padding=1, last=True, gradients="w"),
    ]


CALLS = [
    naive, naive_backward, shared, shared_last, shared_data, shared_weight, shared_weight_last, winograd, winograd_last,
    winograd_data, depthwise, depthwise_last, depthwise_data, depthwise_weight, depthwise_weight_rows, depthwise_weight_last,
]  # fmt: skip

GEOMETRY, EPILOGUE, REDUCE = "csrc/conv/geometry.cuh", "csrc/conv/epilogue.cuh", "csrc/cuda/reduce.h"
NAIVE, SHARED, SHARED_WEIGHT, PARTS, WINOGRAD = (
    f"csrc/conv/{name}.cuh" for name in ("naive", "shared", "shared_weight", "parts", "winograd")
)
ANY, LAST, ROWS, COLUMNS = (f"csrc/conv/depthwise{name}.cuh" for name in ("", "_last", "_rows", "_columns"))
WEIGHT_ANY, WEIGHT_LAST, WEIGHT_ROWS, WEIGHT_COLUMNS = (
    f"csrc/conv/depthwise_weight{name}.cuh" for name in ("", "_last", "_rows", "_columns")
)

_LAUNCHERS = {
    naive: "naive", naive_backward: "naive", shared: "shared", shared_last: "shared", shared_data: "shared_data",
    shared_weight: "shared_weight", shared_weight_last: "shared_weight", winograd: "winograd", winograd_last: "winograd",
    winograd_data: "winograd",
}  # fmt: skip


def _sync(comment, indent=4):
    return " " * indent + f"__syncthreads();  // {comment}\n"


def _bug(name, call, file, old, new, count=1, unit=None):
    return Bug(f"conv_{name}", [Edit(file, old, new, count)], call, [f"csrc/conv/launch_{unit or _LAUNCHERS[call]}.cu"])


def _barrier(name, call, file, comment, indent=4, unit=None):
    return _bug(name, call, file, _sync(comment, indent), "", unit=unit)


WL = "depthwise_weight_last"
REUSE = "  __syncthreads();  // the last use of scratch is over\n"
INSIDE = "static_cast<unsigned>(i) < static_cast<unsigned>(size)"

BUGS = [
    # where things lie
    _bug("past_the_end", naive, GEOMETRY, INSIDE, INSIDE.replace(" < ", " <= ")),
    _bug("reflect", naive, GEOMETRY, "2 * (size - 1) - i", "2 * size - 1 - i"),
    _bug("circular", naive, GEOMETRY, "i < 0 ? i + size", "i < 0 ? i + size - 1"),
    _bug("replicate", shared, GEOMETRY, "i < 0 ? 0 : size - 1", "i < 0 ? 0 : size"),
    _bug("stride_not_exact", naive_backward, GEOMETRY, "q * stride == from && ", ""),
    _bug("sees_past_the_end", naive_backward, GEOMETRY, " && q < static_cast<int>(p.out[axis])", ""),
    _bug("relu", naive, EPILOGUE, "x <= 0.f ? 0.f : x", "x"),
    # naive
    _bug("naive_turn", naive, NAIVE, "at < count; at += flat_threads()", "at < count; at += count", 2),
    _bug("naive_weight_row", naive_backward, NAIVE, "q < first + width", "q < first + width - 1"),
    # shared
    _barrier("shared_first_tile", shared, SHARED, "the first tile is there"),
    _barrier("shared_next_tile", shared, SHARED, "the next tile is there, and this one is read", 6),
    _barrier("shared_way_out_reuse", shared, SHARED, "the last use of memory is over", 6),
    _barrier("shared_way_out_written", shared, SHARED, "the half is written", 6),
    _barrier("shared_next_task", shared, SHARED, "the next task may fill memory"),
    _bug("shared_one_stage", shared, SHARED, "put(memory + (step + 1) % 2 * kStage)", "put(stage)"),
    _bug("shared_columns", shared, SHARED, "if (column + tile * kTileColumns < s.columns)", "if (true)"),
    _bug("shared_rows", shared, SHARED, "if (row < rows) finish_at(base", "finish_at(base"),
    _bug("shared_rows_last", shared_last, SHARED, "if (first + r < rows) finish_at", "finish_at"),
    _bug("shared_next_tap", shared, SHARED, "if (++channel == channels) next_tap(p);", "++channel;"),
    _bug("shared_next_tap_quads", shared_last, SHARED, "if ((channel += kTileDepth) == channels)", "if (true)"),
    _bug("shared_data_group", shared_data, SHARED, "group * reduced * from.channel", "0"),
    _barrier("shared_weight_first", shared_weight, SHARED_WEIGHT, "the first tile is there"),
    _barrier("shared_weight_next", shared_weight, SHARED_WEIGHT, "the next tile is there, and this one is read", 6),
    _barrier("shared_weight_table", shared_weight, SHARED_WEIGHT, "the table is there", 6),
    _barrier("shared_weight_next_task", shared_weight_last, SHARED, "the next task may fill memory"),
    _bug("shared_weight_part", shared_weight, SHARED_WEIGHT, "begin + parts.size < all ? begin + parts.size : all", "all"),
    _bug("shared_weight_rows", shared_weight_last, SHARED_WEIGHT, "if (row < rows && ", "if ("),
    _bug("shared_weight_step", shared_weight, SHARED_WEIGHT, "k < kTileDepth; k++) walk.next", "k < 1; k++) walk.next"),
    _bug("shared_weight_sample", shared_weight_last, SHARED_WEIGHT, "    sample++;\n", ""),
    _bug("parts_last", shared_weight, PARTS, "part < end; part++", "part < end - 1; part++"),
    _bug("parts_twice", depthwise_weight_last, PARTS, "first += kTogether", "first += kTogether / 2", unit="depthwise_weight"),
    # Winograd
    _barrier("winograd_there", winograd, WINOGRAD, "inputs and weights are there", 6),
    _barrier("winograd_read", winograd, WINOGRAD, "inputs and weights are read", 6),
    _barrier("winograd_sums_there", winograd, WINOGRAD, "the sums are there", 6),
    _barrier("winograd_sums_read", winograd, WINOGRAD, "the sums are read", 6),
    _barrier("winograd_there_last", winograd_last, WINOGRAD, "inputs and weights are there", 6),
    _bug("winograd_edge", winograd, WINOGRAD, "row[i] >= 0 && column[j] >= 0", "row[i] >= 0"),
    _bug("winograd_tiles", winograd, WINOGRAD, "if (tile < all && filter", "if (filter"),
    _bug("winograd_odd", winograd, WINOGRAD, "if (row < p.out[1] && column < p.out[2])", "if (row < p.out[1])"),
    _bug("winograd_turned", winograd_data, WINOGRAD, "mirrored ? 8 - i : i", "i"),
    _bug("winograd_transform", winograd_data, WINOGRAD, "third = c - b", "third = b - c"),
    # depthwise
    _bug("rows_halo", depthwise, ROWS, "c == 0 ? lead > 0 : ", "c == 0 ? false : ", unit="depthwise_rows"),
    _bug("rows_end", depthwise, ROWS, "at >= 0 && at < in_chunks", "at >= 0", unit="depthwise_rows"),
    _bug("rows_turn", depthwise, ROWS, "chunk_step(kTogether)", "chunk_step(2 * kTogether)", unit="depthwise_rows"),
    _bug("columns_halo", depthwise, COLUMNS, "kColumnOutputs + K - 1", "kColumnOutputs + K - 2", unit="depthwise_columns"),
    _bug("columns_end", depthwise, COLUMNS, "if (first + turn < out_height)", "if (true)", unit="depthwise_columns"),
    _bug("columns_chunk", depthwise, COLUMNS, "begin < height; begin += K", "begin < K; begin += K", unit="depthwise_columns"),
    _bug("last_halo", depthwise_last, LAST, "kOutputs + K - 1", "kOutputs + K - 2", unit="depthwise_last"),
    _bug("last_edge", depthwise_last, LAST, "ix >= 0 && ix < in_width", "ix < in_width", unit="depthwise_last"),
    _bug("last_chunk", depthwise_last, LAST, "(K == kTapChunk && begin + k >= width)", "false", unit="depthwise_last"),
    _bug("last_end", depthwise_last, EPILOGUE, "    if (i < left) store_quad", "    store_quad", unit="depthwise_last"),
    _bug("any_edge", depthwise, ANY, "if ((iz | iy | ix) >= 0)", "if ((iz | ix) >= 0)", unit="depthwise"),
    _bug("turned", depthwise_data, ANY, "turned ? taps - 1 - tap : tap", "tap", unit="depthwise"),
    _bug("gather_edge", depthwise_data, ANY, "if ((qz | qy | qx) < 0) continue", "if (qx < 0) continue", unit="depthwise"),
    _bug(
        "mirror", depthwise_data, "csrc/conv/launch_depthwise.cu",
        "p.dilation[i] * (p.kernel[i] - 1) - p.padding[i]", "p.padding[i]", unit="depthwise",
    ),
    # the weight gradient
    _bug("weight_reduce_reuse", depthwise_weight, REDUCE, REUSE, "", unit="depthwise_weight_columns"),
    _bug("weight_reduce_reuse_rows", depthwise_weight_rows, REDUCE, REUSE, "", unit="depthwise_weight_rows"),
    _bug("weight_reduce_reuse_any", depthwise_weight, REDUCE, REUSE, "", unit="depthwise_weight"),
    _barrier("weight_last_reuse", depthwise_weight_last, WEIGHT_LAST, "the last task's sums are read", unit=WL),
    _barrier("weight_last_there", depthwise_weight_last, WEIGHT_LAST, "the sums are there", unit=WL),
    _bug("weight_span", depthwise_weight, WEIGHT_ANY, "end < all ? end : all", "end", unit="depthwise_weight"),
    _bug(
        "weight_columns_halo", depthwise_weight, WEIGHT_COLUMNS, "kStrip + K - 1", "kStrip + K - 2",
        unit="depthwise_weight_columns",
    ),
    _bug(
        "weight_columns_end", depthwise_weight, WEIGHT_COLUMNS, "held[i] = first + i < out_height ?", "held[i] = true ?",
        unit="depthwise_weight_columns",
    ),
    _bug(
        "weight_rows_end", depthwise_weight_rows, WEIGHT_ROWS, "at >= 0 && at < in_chunks", "at < in_chunks",
        unit="depthwise_weight_rows",
    ),
    _bug("weight_rows_turn", depthwise_weight_rows, WEIGHT_ROWS, "u += blockDim.x", "u += 64", unit="depthwise_weight_rows"),
    _bug("weight_last_halo", depthwise_weight_last, WEIGHT_LAST, "kStrip + K - 1", "kStrip + K - 2", unit=WL),
    _bug("weight_last_end", depthwise_weight_last, WEIGHT_LAST, "if (first + i < out_width)", "if (true)", unit=WL),
    _bug("weight_last_lanes", depthwise_weight_last, WEIGHT_LAST, "l < kLastLanes", "l < kLastLanes - 1", unit=WL),
]
