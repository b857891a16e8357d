"""Counter-based normals: the specification that every kernel is tested against.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3) turns a 128-bit
counter and a 64-bit key into four 32-bit words; Box-Muller turns two words into two normals. A value depends on
(seed, step, element) only: not on batch size, layout, device or threads.

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (g low, g high, step, stream)     g = element // 4, element = C-order index inside the sample
    words r0..r3 of the group g give the normals of elements 4g..4g+3: (r0, r1) -> 4g, 4g+1 and (r2, r3) -> 4g+2, 4g+3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

NORMALS = 0  # the stream (counter word 3) that normals are drawn from


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a*b. Split at 16 bits, because int64 has no room for a 64-bit unsigned product."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)  # each below 2^48
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def philox(counter: Sequence[torch.Tensor], key: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit words: 4 counter words, 2 key words -> 4 words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _box_muller(r0: torch.Tensor, r1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # u is rounded to float32 twice, as the kernels do: the rounding is part of the definition (at u ~ 1 it decides
    # the radius). u is never 0, so the radius is at most sqrt(2 * 33 ln 2) = 6.8.
    u = (r0.to(torch.float32).to(torch.float64) * 2.0**-32 + 2.0**-33).to(torch.float32).to(torch.float64)
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = r1.to(torch.float64) * (2.0 * math.pi / 2.0**32)
    return radius * torch.sin(angle), radius * torch.cos(angle)


def as_seeds(
    seeds: torch.Tensor | Sequence[int], samples: int, device: torch.device | str | None, op: str
) -> torch.Tensor:
    """Seeds as an int64 tensor [N] on `device`; ValueError if there is not one per sample."""
    seeds = torch.as_tensor(seeds)
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.shape[0] != samples:
        raise ValueError(
            f"{op}: seeds must be int64 with one entry per sample: got {seeds.dtype} of shape {tuple(seeds.shape)},"
            f" expected torch.int64 of shape ({samples},)"
        )
    return seeds.to(device)


def normals(
    shape: Sequence[int],
    *,
    seeds: torch.Tensor | Sequence[int],
    step: int | torch.Tensor = -1,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Standard normals of `shape` [N, ...] in float64, keyed by (seeds[n], step, element).

    step: int, or int64 tensor of shape [1] or [N]; taken modulo 2^32 (-1 names the initial latents).
    """
    shape = tuple(shape)
    if device is None and isinstance(seeds, torch.Tensor):
        device = seeds.device
    seeds = as_seeds(seeds, shape[0], device, "normals")
    elements = math.prod(shape[1:])
    group = torch.arange((elements + 3) // 4, dtype=torch.int64, device=seeds.device)[None, :]  # [1, G]
    step = torch.as_tensor(step, dtype=torch.int64, device=seeds.device).reshape(-1, 1)  # [1 or N, 1]
    key = ((seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None])  # [N, 1]
    counter = (group & _MASK, group >> 32, step & _MASK, torch.full_like(step, NORMALS))
    r0, r1, r2, r3 = philox(counter, key)  # [N, G]
    values = torch.stack((*_box_muller(r0, r1), *_box_muller(r2, r3)), dim=-1)  # [N, G, 4]
    return values.reshape(shape[0], -1)[:, :elements].reshape(shape)
