"""The diffusion ops: one affine solver step, the forward process, and counter-based normals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dlops._ops.diffusion  # noqa: F401  (fake implementations)
from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels, ops
from dlops.reference import diffusion as reference

#: The columns of a schedule table [rows, 11]; see :func:`diffusion_step`.
STEP_COLUMNS = reference.STEP_COLUMNS

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_EMPTY: list[Tensor] = []


def _unsupported(op: str, sample: Tensor, others: Sequence[Tensor | None]) -> str | None:
    """Why our kernel cannot take these tensors; None if it can. Raises ValueError for tensors on several devices."""
    device = sample.device
    for t in others:
        if t is not None and t.device != device:
            raise ValueError(f"{op}: a tensor is on {t.device}, expected {device} as sample")
    if sample.dtype not in _DTYPES:
        return f"{sample.dtype} has no kernel (float32, float16 and bfloat16 have)"
    if device.type != "cpu" and not (device.type == "cuda" and has_cuda_kernels):
        return f"no kernels for device {device.type!r} in this build"
    if torch.is_grad_enabled() and (sample.requires_grad or any(t is not None and t.requires_grad for t in others)):
        return "an input requires grad: torch's operations record the graph"
    if transforming():
        return "inside a torch.func transform or forward-mode AD"
    return None


def _refuse(op: str, **arguments: object) -> None:
    """TypeError for the first argument that is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor: got {type(value).__name__}")


def as_seeds(op: str, seeds: Tensor | Sequence[int], samples: int, device: torch.device) -> Tensor:
    """Philox keys as an int64 tensor [samples] on `device`. Integers of 64 bits are taken modulo 2^64.

    Raises:
        TypeError: not an int64 tensor or a sequence of ints.
        ValueError: another length than `samples`.
    """
    if not isinstance(seeds, Tensor):
        if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Sequence):
            raise TypeError(f"{op}: seeds must be an int64 tensor or a sequence of ints: got {type(seeds).__name__}")
        if not all(isinstance(s, int) for s in seeds):
            raise TypeError(f"{op}: seeds must be ints: got {[type(s).__name__ for s in seeds]}")
        signed = [(s + 2**63) % 2**64 - 2**63 for s in seeds]
        seeds = torch.tensor(signed, dtype=torch.int64, device=device)
    if seeds.dtype != torch.int64:
        raise TypeError(f"{op}: seeds must be int64: got {seeds.dtype}")
    if seeds.dim() != 1 or seeds.shape[0] != samples:
        raise ValueError(
            f"{op}: seeds must have one entry per sample: got shape {list(seeds.shape)}, expected [{samples}]"
        )
    return seeds if seeds.is_contiguous() else seeds.contiguous()


def diffusion_step(
    sample: Tensor,
    model_output: Tensor,
    table: Tensor,
    row: int | Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    rescale: float = 0.0,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    seeds: Tensor | Sequence[int] | None = None,
    threshold_ratio: float = 0.0,
    threshold_max: float = 1.0,
    return_x0: bool = True,
    out: Tensor | None = None,
    out_x0: Tensor | None = None,
    variant: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One step of any linear solver in one pass over the latent: guidance, prediction type, clipping, update, noise.

    With the columns ``px pm pn clip a b c h1 h2 h3 d`` of the table's row::

        m    = model_output, or uncond + guidance * (model_output - uncond)
        m    = m * (rescale * std(model_output) / std(m) + 1 - rescale)
        x0   = px * sample + pm * m + pn * noise, clamped to [-clip, clip] (or to the dynamic threshold)
        prev = a * sample + b * m + c * x0 + h1 * history[0] + h2 * history[1] + h3 * history[2] + d * noise

    A term whose coefficient is zero is skipped, so a NaN in it does not spread.

    Args:
        sample, model_output, uncond, noise: [N, ...], one shape, dtype (float32, float16, bfloat16; others through torch)
            and device. Computed in float32, rounded once.
        table: [rows, 11] float32, contiguous, on the sample's device.
        row: an integer, or an int64 tensor [1] (read by the kernel: nothing is synchronised) or [N] (one row per sample).
            A tensor's value is clamped to the table.
        guidance: scale of classifier-free guidance (Ho and Salimans 2022, equation 6), used where `uncond` is given.
        rescale: guidance rescale phi (Lin et al. 2023, section 3.4); 0 is off. One more launch.
        history: up to three earlier x0, newest first.
        seeds: [N] int64: noise drawn in registers, keyed by (seed, row, element); excludes `noise`.
        threshold_ratio, threshold_max: dynamic thresholding (Saharia et al. 2022, section 2.3); 0 is off. One more launch;
            the column `pn` must be 0.
        return_x0: also return x0.
        out, out_x0: outputs in the memory layout of `sample`; `out` may be `sample`.
        variant: "naive" or "fused" (default).

    Returns:
        (prev, x0 or None), shaped as `sample`.

    Raises:
        TypeError: not a tensor. ValueError: shapes, dtypes, devices, layouts or values that do not fit, named.
    """
    if not (isinstance(sample, Tensor) and isinstance(model_output, Tensor) and isinstance(table, Tensor)):
        _refuse("diffusion_step", sample=sample, model_output=model_output, table=table)
    if seeds is not None:
        seeds = as_seeds("diffusion_step", seeds, sample.shape[0], sample.device)
    unsupported = _unsupported("diffusion_step", sample, (model_output, uncond, noise, *history))

    def plan(use: bool, reason: str) -> Plan:
        inputs = 2 + (uncond is not None) + (noise is not None) + len(history)
        n = sample.numel()
        flops = n * (8 + 3 * (uncond is not None) + 2 * len(history) + (60 if seeds is not None else 0))
        traffic = n * sample.element_size() * (inputs + 1 + return_x0)
        return make_plan(
            "diffusion_step", use, reason, device=sample.device, variant=variant, flops=flops, bytes=traffic
        )

    if not choose("diffusion_step", unsupported, plan):
        prev, x0 = reference.diffusion_step(
            sample, model_output, table, row, uncond=uncond, guidance=guidance, rescale=rescale, history=history,
            noise=noise, seeds=seeds, threshold_ratio=threshold_ratio, threshold_max=threshold_max, return_x0=return_x0
        )  # fmt: skip
        return _into(out, prev), None if x0 is None else _into(out_x0, x0)

    rows, index = (row, 0) if isinstance(row, Tensor) else (None, row)
    history = list(history) if history else _EMPTY
    if out is None and out_x0 is None:
        result = ops.diffusion_step.default(
            sample, model_output, uncond, history, noise, seeds, table, rows, index, guidance, rescale, threshold_ratio,
            threshold_max, return_x0, variant or ""
        )  # fmt: skip
        return result[0], result[1] if return_x0 else None
    if out is None:
        out = torch.empty_like(sample)
    if out_x0 is None and return_x0:
        out_x0 = torch.empty_like(out)
    ops.diffusion_step_out.default(
        sample, model_output, uncond, history, noise, seeds, table, rows, index, guidance, rescale, threshold_ratio,
        threshold_max, variant or "", out, out_x0
    )  # fmt: skip
    return out, out_x0


def _into(out: Tensor | None, value: Tensor) -> Tensor:
    return value if out is None else out.copy_(value)


def add_noise(
    sample: Tensor,
    noise: Tensor | None,
    table: Tensor,
    row: int | Tensor,
    *,
    seeds: Tensor | Sequence[int] | None = None,
    step: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """The forward process, ``table[row, 0] * sample + table[row, 1] * noise`` (Ho et al. 2020, equation 4), in one pass.

    Args:
        sample, noise: [N, ...]. Without `noise`, `seeds` [N] int64 key it together with `step` (-1 or more).
        table: [rows, 2] float32. row: as in :func:`diffusion_step`.
        out: receives the result.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not (isinstance(sample, Tensor) and isinstance(table, Tensor)):
        _refuse("add_noise", sample=sample, table=table)
    if seeds is not None:
        seeds = as_seeds("add_noise", seeds, sample.shape[0], sample.device)
    unsupported = _unsupported("add_noise", sample, (noise,))

    def plan(use: bool, reason: str) -> Plan:
        n = sample.numel()
        traffic = n * sample.element_size() * (2 + (noise is not None))
        return make_plan("add_noise", use, reason, device=sample.device, flops=3 * n, bytes=traffic)

    if not choose("add_noise", unsupported, plan):
        return _into(out, reference.add_noise(sample, noise, table, row, seeds=seeds, step=step))
    rows, index = (row, 0) if isinstance(row, Tensor) else (None, row)
    return _into(out, ops.add_noise.default(sample, noise, seeds, table, rows, index, step))


def randn(
    shape: Sequence[int],
    *,
    seeds: Tensor | Sequence[int],
    step: int = -1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    variant: str | None = None,
) -> Tensor:
    """Standard normals keyed per sample: Philox4x32-10 (Salmon et al. 2011) and Box-Muller.

    The value of an element depends on (seed, step, its C-order index in the sample) and on nothing else: not on the batch
    size, the device, the thread count or the layout. float32 results are the same bits on every CPU level and GPU.

    Args:
        shape: [N, ...]. seeds: N 64-bit integers, or an int64 tensor [N].
        step: -1 (initial latents) or a solver step.
        dtype: float32, float16 or bfloat16 (rounded once from float32). out: contiguous [N, ...], sets dtype and device.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if out is None:
        if device is None:
            device = seeds.device if isinstance(seeds, Tensor) else "cpu"
        if len(shape) < 1 or any(not isinstance(n, (int, torch.SymInt)) or n < 0 for n in shape):
            raise ValueError(f"randn: shape must be [N, ...] of sizes >= 0: got {list(shape)}")
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
    elif list(out.shape) != list(shape):
        raise ValueError(f"randn: out has shape {list(out.shape)}, expected {list(shape)}")
    if not -1 <= step < 2**31:
        raise ValueError(f"randn: step must be in [-1, 2^31): got {step}")
    seeds = as_seeds("randn", seeds, out.shape[0], out.device)
    unsupported = _unsupported("randn", out, ())

    def plan(use: bool, reason: str) -> Plan:
        n = out.numel()
        return make_plan(
            "randn", use, reason, device=out.device, variant=variant, flops=60 * n, bytes=n * out.element_size()
        )

    if not choose("randn", unsupported, plan):
        return out.copy_(reference.randn(tuple(out.shape), seeds=seeds, step=step, dtype=dtype, device=out.device))
    ops.randn.default(out, seeds, step, variant or "")
    return out


