"""The roof: what this machine can do at best, measured in the same run as the figures it is compared with.

Datasheet peaks make everything look slow (a shared core does not run at the brochure's clock); a measured roof does
not. Arithmetic: the fastest of torch's matmul and 3x3 convolution, since on AMD CPUs MKL's matmul may throttle itself
while oneDNN's convolution does not. Memory: a copy, counted as bytes read plus bytes written. Both are the best sample
of several, not the median: a roof that a neighbour has lowered is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from dlops.bench.timing import compare

COPY_BYTES = 512 << 20  # read + written; far above any last-level cache


@dataclass(frozen=True)
class Roof:
    """Peaks of one device. `flops`: dtype name -> operations per second (a fused multiply-add counts two)."""

    device: str
    threads: int
    flops: dict[str, float]
    copy: float  # bytes per second, read + written

    def seconds(self, flops: float, bytes_moved: float, dtype: torch.dtype = torch.float32) -> float:
        """The least time for that much work: whichever of arithmetic and memory takes longer."""
        return max(flops / self.flops[_name(dtype)], bytes_moved / self.copy)


def roof(device: torch.device | str = "cpu") -> Roof:
    """Measures fp32 and bf16 peak and copy bandwidth, once per process, device and thread count (some seconds)."""
    return _roof(str(torch.device(device)), torch.get_num_threads())


@lru_cache
def _roof(device: str, threads: int) -> Roof:
    flops = {_name(dtype): _peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    elements = COPY_BYTES // 8
    source, target = torch.rand(elements, device=device), torch.empty(elements, device=device)
    copied = compare({"copy": lambda: target.copy_(source)}, seconds=0.5, device=device)
    return Roof(device, threads, flops, COPY_BYTES / min(copied.samples["copy"]))


def _peak(device: str, dtype: torch.dtype) -> float:
    # A CPU without bf16 instructions runs this dtype a hundred times slower: a small matrix shows it soon enough.
    side = 8192 if device.startswith("cuda") else (512 if dtype is torch.float32 else 256)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    work: dict[str, tuple[float, Callable[[], torch.Tensor]]] = {"matmul": (2.0 * side**3, lambda: a @ b)}
    if device == "cpu" and dtype is torch.float32:
        channels, size = 64, 112
        image, weight = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3)
        work["conv"] = (2.0 * 9 * channels**2 * size**2, lambda: torch.conv2d(image, weight, padding=1))
    with torch.no_grad():
        timed = compare({name: run for name, (_, run) in work.items()}, seconds=0.4, device=device)
    return max(flops / min(timed.samples[name]) for name, (flops, _) in work.items())


def _name(dtype: torch.dtype) -> str:
    return "float32" if dtype is torch.float32 else "bfloat16"  # float16 shares the roof of bfloat16
