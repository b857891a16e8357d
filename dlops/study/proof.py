"""``make proof``: delete one barrier from a copy of a real CUDA kernel, and be told where it went wrong, without a GPU."""

from __future__ import annotations

import sys
import textwrap
import time
from types import ModuleType

import torch
from torch import Tensor

import dlops
from dlops._library import has_cuda_kernels
from dlops.functional import layer_norm
from dlops.study import planting
from dlops.study._emulate import Emulation, emulate_in
from dlops.study._runner import module
from dlops.study.planting import Edit

#: The barrier between two uses of a block's scratch memory: without it one row's sums may overwrite another's.
BARRIER = Edit("csrc/cuda/reduce.h", "  __syncthreads();  // the last use of scratch is over", "")
UNIT = "csrc/norm/launch_rows.cu"
ROWS, SIZE = 12, 1000


def main() -> int:
    """Prints the story; returns 0 if the bug is found and the kernel as it is passes."""
    torch.manual_seed(0)
    x, weight = torch.randn(ROWS, SIZE), torch.randn(SIZE)
    print(f"One barrier is deleted from a copy of the LayerNorm kernel. GPU: {_gpu() or 'none'}.\n\n  {BARRIER.file}")
    line = BARRIER.line()
    for number, text in enumerate((planting.ROOT / BARRIER.file).read_text().splitlines(), start=1):
        if line - 3 <= number <= line + 3:
            print(_paint(f"  - {number:4}  {text}", _RED) if number == line else f"    {number:4}  {text}")

    start = time.perf_counter()
    path = planting.plant("proof", [BARRIER], only=[UNIT])
    compiled = time.perf_counter()
    broken = planting.in_child(lambda: _run(x, weight, planting.load(path)), timeout=60)
    print(f"\nThe copy, compiled in {compiled - start:.1f} s and run on the CPU in {time.perf_counter() - compiled:.2f} s:\n")
    _show(broken)

    start = time.perf_counter()
    clean = _run(x, weight, module(race=True))
    print(f"\nThe kernel as it is, run in {time.perf_counter() - start:.2f} s:\n")
    _show(clean)
    if clean.outputs is not None:
        launch = clean.report.launches[0]
        exact = torch.nn.functional.layer_norm(x.double(), (SIZE,), weight.double())
        print(
            f"  {launch.kernel}: {launch.grid[0]} blocks x {launch.block[0]} threads, {launch.barriers} barriers, "
            f"{launch.bank_conflicts} bank conflicts, {launch.sectors_per_request or 0:.1f} sectors per request; "
            f"largest difference from float64 {float((clean.outputs - exact).abs().max()):.1e}"
        )
    if _gpu() and has_cuda_kernels:
        print(f"\n{_speed()}")
    return 0 if broken.report.findings and clean.outputs is not None else 1


_RED, _GREEN = "31", "32"


def _paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if sys.stdout.isatty() else text


def _show(result: Emulation) -> None:
    for finding in result.report.findings:
        for text in finding.splitlines():
            print(_paint(textwrap.fill(text.strip(), 110, initial_indent="  ", subsequent_indent="    "), _RED))
    if not result.report.findings:
        print(_paint("  no findings", _GREEN))


def _run(x: Tensor, weight: Tensor, runner: ModuleType) -> Emulation:
    torch.set_num_threads(1)  # in a forked child torch's threads are gone
    return emulate_in(runner, "layer_norm", [x, (SIZE,), weight], {})


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _speed() -> str:
    """The same file on the GPU, beside torch's."""
    from dlops import bench

    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, device="cuda", dtype=torch.bfloat16)

    def ours() -> object:
        return layer_norm(x, (4096,), weight, variant="fused")

    with dlops.backend("dlops"):
        result = bench.compare(
            {"torch": lambda: torch.nn.functional.layer_norm(x, (4096,), weight), "dlops": ours}, device="cuda"
        )
    times = {name: f"{1e6 * seconds:.1f} us" for name, seconds in result.medians.items()}
    return (
        f"The same file on the {_gpu()}, [8192, 4096] bfloat16: {times['dlops']}, torch {times['torch']} "
        f"({result.ratio('torch', 'dlops'):.2f}x)"
    )


if __name__ == "__main__":
    sys.exit(main())
