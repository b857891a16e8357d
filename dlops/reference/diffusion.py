"""Plain PyTorch twins of the diffusion ops: the specification, differentiable, in float32 or float64.

Every update of every solver is one affine map whose coefficients are a row of a table (see `STEP_COLUMNS`):

    m    = model_output, or uncond + guidance * (model_output - uncond)       Ho & Salimans 2207.12598, eq. 6
    m    = m * (rescale * std(model_output) / std(m) + 1 - rescale)           Lin et al. 2305.08891, eqs. 15-16
    x0   = px * sample + pm * m + pn * noise                                  prediction type -> denoised sample
    x0   = clamp(x0, -clip, clip)        or dynamic thresholding              Saharia et al. 2205.11487, section 2.3
    prev = a * sample + b * m + c * x0 + h1 * history[0] + h2 * history[1] + h3 * history[2] + d * noise
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dlops.reference import philox

STEP_COLUMNS = ("px", "pm", "pn", "clip", "a", "b", "c", "h1", "h2", "h3", "d")


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _columns(
    op: str, table: torch.Tensor, row: int | torch.Tensor, sample: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The coefficients of `row`, each shaped [1 or N, 1, ...] so that it broadcasts over the sample."""
    rows = table.shape[0]
    if isinstance(row, torch.Tensor):
        if row.dtype != torch.int64 or row.dim() != 1 or row.shape[0] not in (1, sample.shape[0]):
            raise ValueError(
                f"{op}: row must be an int or an int64 tensor of shape (1,) or ({sample.shape[0]},):"
                f" got {row.dtype} of shape {tuple(row.shape)}"
            )
        picked = table.index_select(0, row.clamp(0, rows - 1))
    else:
        if not 0 <= row < rows:
            raise ValueError(f"{op}: row must lie in the table: got {row}, expected 0 to {rows - 1}")
        picked = table[row : row + 1]
    shape = (-1,) + (1,) * (sample.dim() - 1)
    return [column.reshape(shape) for column in picked.to(device=sample.device, dtype=dtype).unbind(1)]


def _check(op: str, sample: torch.Tensor, **others: torch.Tensor | None) -> None:
    if sample.dim() == 0:
        raise ValueError(f"{op}: sample must be [N, ...]: got a scalar")
    for name, other in others.items():
        if other is not None and other.shape != sample.shape:
            raise ValueError(
                f"{op}: {name} must have the sample's shape: got {tuple(other.shape)}, expected {tuple(sample.shape)}"
            )


def _term(coefficient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """coefficient * value, and 0 where the coefficient is 0 even if the value is NaN or infinite."""
    return coefficient * torch.where(coefficient == 0, torch.zeros_like(value), value)


def quantile(x: torch.Tensor, ratio: float) -> torch.Tensor:
    """Quantile of each row of x [N, M] by linear interpolation, NaN for a row that holds a NaN. Returns [N]."""
    ordered = torch.sort(x, dim=1).values  # NaN sorts last
    rank = ratio * (x.shape[1] - 1)
    low, high = math.floor(rank), math.ceil(rank)
    value = torch.lerp(ordered[:, low], ordered[:, high], rank - low)
    return torch.where(ordered[:, -1].isnan(), ordered[:, -1], value)


def _dynamic_threshold(x0: torch.Tensor, ratio: float, maximum: float) -> torch.Tensor:
    bound = quantile(x0.abs().flatten(1), ratio).clamp(min=1.0).clamp(max=maximum)
    bound = bound.reshape((-1,) + (1,) * (x0.dim() - 1))
    return torch.clamp(x0, -bound, bound) / bound


def _guide(m: torch.Tensor, uncond: torch.Tensor | None, guidance: float, rescale: float) -> torch.Tensor:
    if uncond is None:
        return m
    guided = uncond + guidance * (m - uncond)
    if rescale > 0:
        dims = tuple(range(1, m.dim()))
        ratio = m.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = guided * (rescale * ratio + (1 - rescale))
    return guided


def diffusion_step(
    sample: torch.Tensor,
    model_output: torch.Tensor,
    table: torch.Tensor,
    row: int | torch.Tensor,
    *,
    uncond: torch.Tensor | None = None,
    guidance: float = 1.0,
    rescale: float = 0.0,
    history: Sequence[torch.Tensor] = (),
    noise: torch.Tensor | None = None,
    seeds: torch.Tensor | Sequence[int] | None = None,
    threshold_ratio: float = 0.0,
    threshold_max: float = 1.0,
    return_x0: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One solver step. Returns (previous sample, denoised sample x0 or None), both of the sample's shape and dtype.

    sample, model_output, uncond, noise, history[i]: [N, ...] of one shape. table: [rows, 11], `STEP_COLUMNS`.
    row: int, or int64 tensor [1] (shared) or [N] (one schedule row per sample; out of range is clamped).
    history: up to three earlier x0, newest first. seeds: int64 [N], noise keyed by (seed, row) instead of `noise`.
    Computes in float64 for a float64 sample, else in float32, and rounds once. Raises ValueError.
    """
    op = "diffusion_step"
    if len(history) > 3:
        raise ValueError(f"{op}: history must have at most 3 entries: got {len(history)}")
    earlier = {f"history[{i}]": x0 for i, x0 in enumerate(history)}
    _check(op, sample, model_output=model_output, uncond=uncond, noise=noise, **earlier)
    dtype = _compute_dtype(sample)
    px, pm, pn, clip, a, b, c, h1, h2, h3, d = _columns(op, table, row, sample, dtype)
    if seeds is not None:
        if noise is not None:
            raise ValueError(f"{op}: noise and seeds exclude each other: got both")
        seeds = philox.as_seeds(seeds, sample.shape[0], sample.device, op)
        noise = philox.normals(sample.shape, seeds=seeds, step=row)
        noise = noise.to(dtype)
    elif noise is not None:
        noise = noise.to(dtype)
    x = sample.to(dtype)
    m = _guide(model_output.to(dtype), None if uncond is None else uncond.to(dtype), guidance, rescale)

    x0 = px * x + pm * m
    if noise is not None:
        x0 = x0 + _term(pn, noise)
    if threshold_ratio > 0 and x0.numel():
        x0 = _dynamic_threshold(x0, threshold_ratio, threshold_max)
    else:
        x0 = torch.clamp(x0, -clip, clip)

    prev = a * x + _term(b, m) + _term(c, x0)
    for coefficient, value in zip((h1, h2, h3), history):
        prev = prev + _term(coefficient, value.to(dtype))
    if noise is not None:
        prev = prev + _term(d, noise)
    return prev.to(sample.dtype), x0.to(sample.dtype) if return_x0 else None


def add_noise(
    sample: torch.Tensor,
    noise: torch.Tensor | None,
    table: torch.Tensor,
    row: int | torch.Tensor,
    *,
    seeds: torch.Tensor | Sequence[int] | None = None,
    step: int = -1,
) -> torch.Tensor:
    """s * sample + n * noise with (s, n) = table[row]: the forward process q(x_t | x_0), Ho et al. 2006.11239, eq. 4.

    sample, noise: [N, ...]. table: [rows, 2]. row as in `diffusion_step`. Without `noise`, normals by (seeds, step).
    """
    op = "add_noise"
    _check(op, sample, noise=noise)
    dtype = _compute_dtype(sample)
    if (noise is None) == (seeds is None):
        raise ValueError(f"{op}: one of noise and seeds is needed: got {'neither' if noise is None else 'both'}")
    scale, sigma = _columns(op, table, row, sample, dtype)
    if noise is None:
        seeds = philox.as_seeds(seeds, sample.shape[0], sample.device, op)
        noise = philox.normals(sample.shape, seeds=seeds, step=step)
    return (scale * sample.to(dtype) + _term(sigma, noise.to(dtype))).to(sample.dtype)


def randn(
    shape: Sequence[int],
    *,
    seeds: torch.Tensor | Sequence[int],
    step: int = -1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Standard normals of `shape` [N, ...] that depend on (seeds[n], step, element) only; see `reference.philox`."""
    return philox.normals(shape, seeds=seeds, step=step, device=device).to(dtype)
