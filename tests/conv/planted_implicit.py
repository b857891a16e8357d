"""Bugs for tests/simt/test_planted.py: every barrier, wait and commit of the implicit GEMM, its layouts, edges that matter."""

from __future__ import annotations

import math

import torch

from dlops.functional import conv2d
from dlops.study._runner import _installed
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

TILE, GATHER, WEIGHT = (f"csrc/conv/implicit_{name}.cuh" for name in ("tile", "gather", "weight"))


def _tensors(size, filters, kernel, groups=1):
    generator = torch.Generator().manual_seed(sum(size))
    randn = lambda *size: torch.randn(size, generator=generator).half()  # noqa: E731
    products = size[1] // groups * kernel[0] * kernel[1]
    x = randn(*size).to(memory_format=torch.channels_last)
    return randn, x, randn(filters, size[1] // groups, *kernel) / math.sqrt(products)


def _conv(x, w, *bias, **options):
    """The CPU, which it is compared with, has rungs of its own: there the variant is the default."""
    emulated = getattr(_installed, "tables", None) is not None
    return conv2d(x, w, *bias, variant="implicit_gemm" if emulated else None, **options)


def forward():
    """Twelve steps of K, which are no multiple of the ring; rows and columns that fill no tile; a tap in half a step."""
    randn, x, w = _tensors((3, 40, 9, 7), 72, (3, 3))
    residual = randn(3, 72, 9, 7).to(memory_format=torch.channels_last)
    y = _conv(x, w, randn(72), padding=1, residual=residual, activation="silu")
    _, ring, v = _tensors((1, 24, 7, 9), 16, (3, 3))
    return [y.float(), _conv(ring, v, padding=1, padding_mode="circular").float()]


def forward_groups():
    """Channels that are no multiple of 8, and a NaN that belongs to one group alone."""
    _, x, w = _tensors((2, 15, 12, 11), 21, (3, 2), 3)
    x[0, 5:10, 4, 4] = math.nan
    return [_conv(x, w, stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=3).float()]


def data():
    """Phases of different sizes, several groups."""
    results = []
    for size, filters, groups, options in (
        ((2, 24, 13, 9), 80, 1, dict(stride=2, padding=1)),
        ((1, 15, 12, 11), 42, 3, dict(stride=(3, 1), padding=(2, 1), dilation=(2, 1))),
        ((1, 8, 16, 8), 8, 1, dict(stride=4, dilation=2, padding=3)),
    ):
        randn, x, w = _tensors(size, filters, (3, 3), groups)
        y = _conv(x.requires_grad_(), w, groups=groups, **options)
        dy = randn(*y.shape).to(memory_format=torch.channels_last)
        results += [g.float() for g in torch.autograd.grad(y, x, dy)]
    return results


def weight():
    """Eight parts of K; several tiles of columns; groups, and channels that are no multiple of 8."""
    results = []
    for size, filters, groups, options in (
        ((2, 8, 33, 32), 16, 1, dict(padding=1)),
        ((3, 21, 8, 11), 15, 3, dict(stride=(2, 1), padding=1, dilation=(1, 2))),
    ):
        randn, x, w = _tensors(size, filters, (3, 3), groups)
        y = _conv(x, w.requires_grad_(), groups=groups, **options)
        dy = (randn(*y.shape) / math.sqrt(y.numel() / filters)).to(memory_format=torch.channels_last)
        results += [g.float() for g in torch.autograd.grad(y, w, dy)]
    return results


CALLS = [forward, forward_groups, data, weight]
TOLERANCES = dict.fromkeys(CALLS, 5e-3)

# Fewer instances to compile.
_HALF_ONLY = Edit(
    "csrc/conv/launch_implicit_types.h",
    "    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));\n",
    "    default: break;\n",
)
_NARROW = Edit(
    "csrc/conv/launch_implicit.h",
    "  if (small < large && small < narrow) return multiply_tiles<T, 64, 64, data>(p, stream);\n"
    "  if (narrow < large) return multiply_tiles<T, 128, 64, data>(p, stream);\n"
    "  return multiply_tiles<T, 128, 128, data>(p, stream);\n",
    "  if (small + narrow + large < 0) return 1;\n  return multiply_tiles<T, 128, 64, data>(p, stream);\n",
)
_SMALL = Edit(
    "csrc/conv/launch_implicit_weight.cu",
    "tile_of(p) == 64 ? multiply_parts<T, 64>(p, plan, stream) : multiply_parts<T, 128>(p, plan, stream);",
    "tile_of(p) == 64 ? multiply_parts<T, 64>(p, plan, stream) : 1;",
)
UNITS = {
    forward: ("csrc/conv/launch_implicit.cu", [_HALF_ONLY, _NARROW]),
    forward_groups: ("csrc/conv/launch_implicit.cu", [_HALF_ONLY, _NARROW]),
    data: ("csrc/conv/launch_implicit_data.cu", [_HALF_ONLY, _NARROW]),
    weight: ("csrc/conv/launch_implicit_weight.cu", [_HALF_ONLY, _SMALL]),
}


def _bug(name, call, file, old, new, count=1):
    unit, fewer = UNITS[call]
    return Bug(f"conv_implicit_{name}", [Edit(file, old, new, count), *fewer], call, [unit], TOLERANCES[call])


def _without(name, call, file, old):
    return _bug(name, call, file, old, "")


STAGE = "    __syncthreads();                    // all of it, and nobody reads the step before any more\n"
BUGS = [
    # the ring
    _without("wait", forward, TILE, "    ptx::cp_async_wait<kStages - 2>();  // this step\n"),
    _bug("wait_one_less", forward, TILE, "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    _without("stage", forward, TILE, STAGE),
    _without("stage_weight", weight, TILE, STAGE),
    _bug("commit_first", forward, TILE, "    ptx::cp_async_commit();\n  }\n", "  }\n"),
    _bug("commit", forward, TILE, "    ptx::cp_async_commit();\n    add_products", "    add_products"),
    _bug("stage_in_use", forward, TILE, "ring + (step + kStages - 1) % kStages", "ring + (step + kStages) % kStages"),
    _bug("last_step", forward, TILE, "if (step + kStages - 1 < steps)", "if (step + kStages < steps)"),
    _bug("first_steps", weight, TILE, "if (s < steps) load", "if (s + 1 < steps) load"),
    # layouts and fragments
    _bug("swizzle", forward, GATHER, "place<Major::k, M>(line(), static_cast<int>(threadIdx.x) % 4)",
         "line() * kDepth + static_cast<int>(threadIdx.x) % 4 * 8"),
    _bug("swizzle_weight", weight, WEIGHT, "place<Major::mn, M>(line() + i * kApart, chunk())",
         "(line() + i * kApart) * M + chunk() * 8"),
    _bug("second_half", forward, TILE, "((stage + first) ^ 2 * k)", "((stage + first) + 2 * k)"),
    _bug("second_half_weight", weight, TILE, "((stage + first) ^ 2 * row)", "((stage + first) + 2 * row)"),
    _bug("not_transposed", weight, TILE, "ptx::ldmatrix_trans(f,", "ptx::ldmatrix(f,"),
    _bug("left_as_right", forward, TILE, "row = right ? third : second, k = right ? second : third",
         "row = third, k = second"),
    _bug("warp_column", forward, TILE, "/ 32 % 2 * (N / 2)", "/ 64 * (N / 2)"),
    _bug("columns_swapped", forward, TILE, "second[2] = {f[2], f[3]}", "second[2] = {f[0], f[1]}"),
    # gathering
    _without("axes", forward, GATHER, "  __syncthreads();  // the axes are there\n"),
    _without("rows", forward, GATHER, "  __syncthreads();  // the rows are there\n"),
    _bug("image_edge", forward, GATHER, "static_cast<unsigned>(at[a]) < static_cast<unsigned>(axis[a].size)",
         "static_cast<unsigned>(at[a]) <= static_cast<unsigned>(axis[a].size)"),
    _bug("padding_mode", forward, GATHER, "if (!inside && p.padding_mode != PaddingMode::zeros)", "if (false)"),
    _bug("row_lost", forward, GATHER, "if (at >= p.batch * per) {", "if (at >= p.batch * per - 1) {"),
    _bug("next_tap", forward, GATHER, "if (++tap[2] < axis[2].taps) continue;", "if (++tap[2] <= axis[2].taps) continue;"),
    _bug("next_tap_y", forward, GATHER, "if (++tap[1] < axis[1].taps) continue;", "if (++tap[1] < axis[1].taps - 1) continue;"),
    _bug("not_looked", forward, GATHER, "      settle();\n      look();\n    }\n", "      settle();\n    }\n"),
    _bug("tap_too_long", forward, GATHER, "while (chunk >= p.chunks && !over())", "while (chunk > p.chunks && !over())"),
    _bug("steps", forward, GATHER, "(taps * p.chunks + 3) / 4", "taps * p.chunks / 4"),
    _bug("group_edge", forward_groups, GATHER, "p.source_depth - at : 0", "8 : 0"),
    _bug("group_weights", forward_groups, GATHER, "(group * p.result_depth + first_column + line())", "(first_column + line())"),
    _bug("dilation", forward_groups, GATHER, "ahead[a] = tap[a] * axis[a].dilation", "ahead[a] = tap[a]"),
    # the weights
    _bug("arranged_tap", forward, GATHER, "from += tap + chunk * 8 * step", "from += chunk * 8 * step"),
    _bug("arranged_edge", forward_groups, GATHER, "(chunk * 8 + j < a.depth)", "(chunk * 8 + j < a.depth - 1)"),
    _bug("arranged_group", data, GATHER, "(group * a.depth * a.group_rows + row % a.group_rows)", "(row % a.group_rows)"),
    # the result
    _without("ring_in_use", forward, GATHER, "  __syncthreads();  // nobody reads the ring any more\n"),
    _without("result_unwritten", forward, GATHER, "  __syncwarp();  // the warp's results are there\n"),
    _bug("result_swizzle", forward, GATHER, "result_place<N>(row, chunk * 2 + odd)", "result_place<N>(row ^ 1, chunk * 2 + odd)"),
    _bug("result_halves", forward, GATHER, "low = odd ? v : u", "low = u"),
    _bug("result_edge", forward_groups, GATHER, "pack<T>(sum), left, p.wide_result)", "pack<T>(sum), 8, p.wide_result)"),
    _bug("residual", forward, GATHER, "bias[i] + more[i]", "bias[i]"),
    _bug("bias", forward, GATHER, "(epilogue.bias) + channel, left", "(epilogue.bias) + column % 64, left"),
    # phases
    _bug("phase_direction", data, GATHER, "-(dilation / divisor)", "dilation / divisor"),
    _bug("phase_period", data, GATHER, "period = stride / divisor", "period = stride"),
    _bug("phase_first_tap", data, GATHER, "found.tap = tap,", "found.tap = 0,"),
    _bug("phase_taps", data, GATHER, "(kernel - tap + period - 1) / period", "(kernel - tap) / period"),
    _bug("phase_rows", data, GATHER, "(result - phase + stride - 1) / stride", "(result - phase) / stride"),
    _bug("phase_start", data, GATHER, "any ? (from - tap * dilation) / stride : 0", "from / stride"),
    _bug("phase_lost", data, GATHER, "phase % count", "0"),
    # the weight pass
    _bug("walk", weight, WEIGHT, "at[a] += step[a] + carry", "at[a] += step[a]"),
    _bug("walk_sample", weight, WEIGHT, "sample += step_samples + carry", "sample += step_samples"),
    _bug("walk_dy", weight, WEIGHT, "      dy += kApart * p.filters;\n", ""),
    _bug("last_pixel", weight, WEIGHT, "left(pixels - line())", "left(pixels - line() - 1)"),
    _bug("weight_edge", weight, WEIGHT, "static_cast<unsigned>(seen) < static_cast<unsigned>(p.in[a])",
         "static_cast<unsigned>(seen) <= static_cast<unsigned>(p.in[a])"),
    _bug("weight_shift", weight, WEIGHT, "p.dilation[a] - p.padding[a]", "p.dilation[a]"),
    _bug("weight_group", weight, WEIGHT, "static_cast<const T*>(p.x) + group * p.group_channels() + at",
         "static_cast<const T*>(p.x) + at"),
    _bug("weight_part", weight, WEIGHT, "(part * p.groups + group)", "(group)"),
    _without("sum_unwritten", weight, WEIGHT, "    __syncthreads();  // the eighths are there\n"),
    _without("sum_in_use", weight, WEIGHT, "    __syncthreads();  // and done with\n"),
    _bug("sum_eighth", weight, WEIGHT, "for (int i = 1; i < kSumLanes; i++)", "for (int i = 2; i < kSumLanes; i++)"),
    _bug("sum_last_eighth", weight, WEIGHT, "for (int i = 1; i < kSumLanes; i++)", "for (int i = 1; i < kSumLanes - 1; i++)"),
    _bug("sum_padding", weight, WEIGHT, " && channel < p.group_channels()", ""),
    _bug("parts", weight, "csrc/conv/launch_implicit_weight.cu", "plan.parts = ceil_div(pixels, plan.pixels_per_part)",
         "plan.parts = pixels / plan.pixels_per_part"),
]  # fmt: skip
