"""Bugs for tests/simt/test_planted.py: every barrier of the norm kernels, and edges that matter."""

from __future__ import annotations

import torch

from dlops.functional import group_norm, layer_norm
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

REDUCE, SHARED = "csrc/cuda/reduce.h", "csrc/norm/cuda.cuh"
GROUP, LARGE, BACKWARD = "csrc/norm/group.cuh", "csrc/norm/group_large.cuh", "csrc/norm/group_backward.cuh"
ROWS, ROWS_BACKWARD = "csrc/norm/rows.cuh", "csrc/norm/rows_backward.cuh"


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last)


# Emulated grids have at most 8 blocks: with more tasks than that a block takes a second turn with the same shared memory.


def naive():
    return [group_norm(_randn(5, 8, 9, 9), 2, variant="naive")]


def block():
    """Several warps for a group, chunks that belong to two channels."""
    return [
        group_norm(_randn(10, 8, 10, 15), 1, _randn(8), _randn(8)),
        group_norm(_randn(2, 64, 5, 5), 2, _randn(64)),
    ]


def large():
    return [group_norm(_randn(1, 3, 95, 93), 1, _randn(3))]


def large_last():
    return [group_norm(_last(_randn(5, 33, 16, 17)), 3, _randn(33))]


def _differentiate(y: torch.Tensor, *inputs: torch.Tensor):
    return torch.autograd.grad(y, inputs, _randn(*y.shape))


def backward():
    x, w = _randn(3, 300, 3, 4).requires_grad_(), _randn(300).requires_grad_()
    large = _randn(2, 6, 13, 17).requires_grad_()
    return [
        *_differentiate(group_norm(x, 6, w, activation="silu"), x, w),
        *_differentiate(group_norm(large, 3, activation="silu"), large),
    ]


def backward_last():
    x, w = _last(_randn(9, 36, 7, 5)).requires_grad_(), _randn(36).requires_grad_()
    return _differentiate(group_norm(x, 3, w, activation="silu"), x, w)


def rows():
    return [layer_norm(_randn(10, 702), (702,), _randn(702)), layer_norm(_randn(9, 33), (33,))]


def rows_backward():
    x, w = _randn(130, 1102).requires_grad_(), _randn(1102).requires_grad_()
    return _differentiate(layer_norm(x, (1102,), w), x, w)


CALLS = [naive, block, large, large_last, backward, backward_last, rows, rows_backward]

FORWARD, FORWARD_LARGE, BACK = (f"csrc/norm/launch_{name}.cu" for name in ("group", "group_large", "group_backward"))
ROW, ROW_BACK = "csrc/norm/launch_rows.cu", "csrc/norm/launch_rows_backward.cu"

REUSE = "  __syncthreads();  // the last use of scratch is over\n"


def _bug(name, call, unit, file, old, new, count=1):
    return Bug(f"norm_{name}", [Edit(file, old, new, count)], call, [unit])


BUGS = [
    # barriers
    _bug("reduce_reuse", naive, FORWARD, REDUCE, REUSE, ""),
    _bug("reduce_reuse_rows", rows, ROW, REDUCE, REUSE, ""),
    _bug("reduce_written", block, FORWARD, REDUCE, "] = a;\n  __syncthreads();\n", "] = a;\n"),
    _bug("reduce_written_large", large, FORWARD_LARGE, REDUCE, "] = a;\n  __syncthreads();\n", "] = a;\n"),
    _bug("block_constants", block, FORWARD, GROUP, "    __syncthreads();\n", ""),
    _bug("columns_reuse", backward, BACK, SHARED, REUSE, ""),
    _bug("columns_reuse_rows", rows_backward, ROW_BACK, SHARED, REUSE, ""),
    _bug("columns_reuse_last", backward_last, BACK, SHARED, REUSE, ""),
    _bug("columns_written", backward, BACK, SHARED, "  }\n  __syncthreads();\n", "  }\n"),
    _bug("columns_written_rows", rows_backward, ROW_BACK, SHARED, "  }\n  __syncthreads();\n", "  }\n"),
    _bug("stats_reuse", large_last, FORWARD_LARGE, LARGE, "  " + REUSE, ""),
    _bug("stats_written", large_last, FORWARD_LARGE, LARGE, "    }\n    __syncthreads();\n", "    }\n"),
    # reductions
    _bug("mask", rows, ROW, REDUCE, "kWarp = 0xffffffffu", "kWarp = 0x7fffffffu"),
    _bug("tree_starts_late", rows, ROW, REDUCE, "int d = 16", "int d = 8"),
    _bug("not_from_first", rows, ROW, REDUCE, "  return a.from_first();", "  return a;"),
    _bug("scratch_unwritten", block, FORWARD, REDUCE, "lane < warps ? scratch[lane] : A{}", "scratch[lane]"),
    _bug("scratch_shared", rows, ROW, REDUCE, "scratch[threadIdx.x / 32] = a", "scratch[threadIdx.x % 32] = a"),
    _bug("warp_for_block", rows, ROW, ROWS, "blockDim.x > 32 ?", "blockDim.x > 64 ?"),
    # edges
    _bug("constants_short", block, FORWARD, GROUP, "; c < per; c +=", "; c < per - 1; c +="),
    _bug("constants_past_end", block, FORWARD, GROUP, "if (++c == per) c = 0;", "++c;"),
    _bug("padding_counted", rows, ROW, ROWS, "m.add(v, p.d - mine - h * turn, p.rms)", "m.add(v, V, p.rms)"),
    _bug("last_piece", large, FORWARD_LARGE, LARGE, "rest < piece ? rest : piece", "piece"),
    _bug("last_rows", large_last, FORWARD_LARGE, LARGE, "y + blockDim.y - 1) / blockDim.y", "y) / blockDim.y"),
    _bug("columns_row_lost", rows_backward, ROW_BACK, SHARED, "int y = first; y <", "int y = first + 1; y <"),
    _bug(
        "columns_row_twice", rows_backward, ROW_BACK, SHARED,
        "k.end = k.begin + t.piece < rows ? k.begin + t.piece : rows",
        "k.end = k.begin + t.piece + 1 < rows ? k.begin + t.piece + 1 : rows",
    ),
    _bug("turn_twice", backward, BACK, BACKWARD, "i += kTurns * 32 * V", "i += 32 * V"),
    _bug("tail_turn", rows_backward, ROW_BACK, ROWS_BACKWARD, "mine + kGradientHeld<T> * turn", "mine + turn", 2),
]
