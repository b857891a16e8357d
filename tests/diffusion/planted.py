"""Bugs for tests/simt/test_planted.py: every barrier of the diffusion kernels, and edges that matter."""

from __future__ import annotations

import torch

from dlops.functional import add_noise, diffusion_step, randn
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

REDUCE, SELECT = "csrc/cuda/reduce.h", "csrc/diffusion/reduce.cuh"
STEP, NOISE = "csrc/diffusion/cuda.cuh", "csrc/diffusion/noise.cuh"


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _table() -> torch.Tensor:
    table = _randn(3, 11).abs() + 0.1
    table[:, 2] = 0  # pn: the threshold is taken before the noise is known
    return table


# Emulated grids have at most 8 blocks: with more samples a block takes a second one with the same shared memory. 2501
# elements: a thread's second turn, a last chunk that is not whole.


def threshold():
    x, m = _randn(9, 2501), _randn(9, 2501) * 3
    return diffusion_step(x, m, _table(), 1, threshold_ratio=0.93, threshold_max=100.0)


def rescale():
    x, m, uncond = _randn(9, 2501), _randn(2501, 9).t().contiguous(), _randn(9, 2501).flip(1)
    return diffusion_step(x, m, _table(), 1, uncond=uncond, guidance=3.0, rescale=0.7)


def fused():
    table = _table()
    table[:, 2] = 0.3
    x, whole = _randn(3, 5003), _randn(3, 5004)
    return [
        *diffusion_step(whole, whole.flip(1), table, 2),
        *diffusion_step(x, x.flip(1), table, torch.tensor([0, 7, -2]), history=[x * 2], seeds=[1, 2, 3]),
    ]


def noise():
    x = _randn(3, 5003)
    return [
        randn((3, 5003), seeds=[4, 5, 6], variant="naive"),
        randn((3, 5003), seeds=[4, 5, 6], step=8),
        add_noise(x, None, _randn(2, 2), 1, seeds=[7, 8, 9], step=3),
    ]


CALLS = [threshold, rescale, fused, noise]

UNIT, UNIT_STEP, UNIT_NOISE = (f"csrc/diffusion/launch{name}.cu" for name in ("_reduce", "", "_noise"))


def _bug(name, call, unit, file, old, new, count=1):
    return Bug(f"diffusion_{name}", [Edit(file, old, new, count)], call, [unit], tolerance=1e-5)


BUGS = [
    # barriers
    _bug("deviations_reuse", rescale, UNIT, REDUCE, "  __syncthreads();  // the last use of scratch is over\n", ""),
    _bug("histogram_cleared", threshold, UNIT, SELECT, "histogram[b] = 0;\n    __syncthreads();\n", "histogram[b] = 0;\n"),
    _bug("histogram_counted", threshold, UNIT, SELECT, "    __syncthreads();\n    const uint32_t bin", "    const uint32_t bin"),
    _bug("histogram_read", threshold, UNIT, SELECT, "    __syncthreads();  // all have read the histogram\n", ""),
    _bug("warp_totals", threshold, UNIT, SELECT, "  __syncthreads();\n  uint32_t start", "  uint32_t start"),
    _bug("found", threshold, UNIT, SELECT, "  __syncthreads();\n  rank = found[1];", "  rank = found[1];"),
    _bug("extreme_cleared", threshold, UNIT, SELECT, "extreme[1] = 0;\n  __syncthreads();\n", "extreme[1] = 0;\n"),
    _bug("extreme_found", threshold, UNIT, SELECT, "  __syncthreads();\n  above = extreme[0]", "  above = extreme[0]"),
    # atomics and the scan
    _bug(
        "not_atomic", threshold, UNIT, SELECT,
        "atomicAdd(&histogram[bits >> shift & mask], 1u)", "histogram[bits >> shift & mask] += 1u",
    ),
    _bug("scan_bound", threshold, UNIT, SELECT, "if (lane >= d) sum += below", "if (lane > d) sum += below"),
    _bug("scan_mask", threshold, UNIT, SELECT, "__shfl_up_sync(kWarp,", "__shfl_up_sync(kWarp << 1,"),
    _bug("two_bins", threshold, UNIT, SELECT, "rank - start < mine", "rank - start <= mine"),
    # edges
    _bug("counts_padding", threshold, UNIT, SELECT, "if (j < left && (bits & known) == value)", "if ((bits & known) == value)"),
    _bug("last_bits", threshold, UNIT, SELECT, "{11, 11, 10}", "{11, 11, 9}"),
    _bug("chunk_overlap", fused, UNIT_STEP, STEP, "chunk = first + u * blockDim.x, i", "chunk = first + u, i"),
    _bug("row_not_clamped", fused, UNIT_STEP, STEP, "c.table_rows ? c.table_rows - 1", "c.table_rows ? c.table_rows - 2"),
    _bug("which_normal", noise, UNIT_NOISE, STEP, "return j < 2 ?", "return j <= 2 ?"),
    _bug("last_chunk", noise, UNIT_NOISE, NOISE, "chunks = (p.elements + V - 1) / V;", "chunks = p.elements / V;", 2),
]
