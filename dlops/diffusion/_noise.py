"""Noise for the samplers: torch's stream as diffusers draws it. Counter-based noise is `randn` (dlops.functional)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def torch_randn(shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`torch.randn` with the rules of diffusers' `randn_tensor`, so that the same generator gives the same bits.

    A list of generators draws each sample of the batch from its own; a CPU generator draws on the CPU and the result
    moves to `device`. Raises ValueError for a generator of another accelerator or a list of the wrong length.
    """
    if generator is None:
        return torch.randn(shape, device=device, dtype=dtype)
    if not isinstance(generator, (list, tuple)):
        generator = [generator]
    source = generator[0].device if generator else None
    if len(generator) not in (1, shape[0]):
        raise ValueError(f"step: generator must be one, or one per sample: got {len(generator)}, expected {shape[0]}")
    if source.type not in ("cpu", device.type):
        raise ValueError(f"step: generator must be on the CPU or on {device}: got one on {source}")
    drawn_on = torch.device("cpu") if source.type == "cpu" else device
    if len(generator) == 1:
        return torch.randn(shape, generator=generator[0], device=drawn_on, dtype=dtype).to(device)
    one = (1, *shape[1:])
    return torch.cat([torch.randn(one, generator=g, device=drawn_on, dtype=dtype) for g in generator]).to(device)
