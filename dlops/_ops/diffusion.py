"""Fake implementations of the diffusion ops: the shapes, dtypes and layouts that csrc/diffusion/ops.cpp gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dlops._library  # noqa: F401  (registers torch.ops.dlops)


def _output(sample: Tensor, others: Sequence[Tensor | None], c_order: bool) -> Tensor:
    """As `Layout` in ops.cpp: memory order where all tensors share a dense layout, samples outermost; else C order."""
    shared = all(t is None or t.stride() == sample.stride() for t in others)
    outermost = sample.shape[0] <= 1 or sample.stride(0) * sample.shape[0] == sample.numel()
    dense = torch.ops.aten.is_non_overlapping_and_dense(sample)
    if not c_order and shared and outermost and dense:
        return torch.empty_like(sample)
    return torch.empty_like(sample, memory_format=torch.contiguous_format)


@torch.library.register_fake("dlops::diffusion_step")
def _(sample, model_output, uncond, history, noise, seeds, table, rows, row, guidance, rescale, threshold_ratio,
      threshold_max, return_x0, variant):  # fmt: skip
    make = lambda: _output(sample, (model_output, uncond, noise, *history), seeds is not None)  # noqa: E731
    return [make(), make()] if return_x0 else [make()]


@torch.library.register_fake("dlops::diffusion_step_out")
def _(sample, model_output, uncond, history, noise, seeds, table, rows, row, guidance, rescale, threshold_ratio,
      threshold_max, variant, out, out_x0):  # fmt: skip
    return None


@torch.library.register_fake("dlops::add_noise")
def _(sample, noise, seeds, table, rows, row, step):
    return _output(sample, (noise,), seeds is not None)


@torch.library.register_fake("dlops::randn")
def _(out, seeds, step, variant):
    return None
