"""Every finding has a message that names file, line, block and thread: tests/simt/findings.cpp, one kernel each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simt import programs

SOURCE = Path(__file__).with_name("findings.cpp").read_text().splitlines()

# kernel: (what the message says, a text of the line that it names, the thread); found by both builds.
ALWAYS = {
    "exits_early": ("this thread has returned while 37 threads wait in __syncthreads here", "__syncthreads();", 37),
    "diverges": ("divergence: reaches __syncthreads .* while 32 threads wait in __syncthreads", "__syncthreads();", 32),
    "barrier_count": ("this thread has returned while", "<= threadIdx.x / 32", 0),
    "half_a_warp": (
        r"deadlock: no thread can run\n.*\n.*__shfl_sync tests/simt/findings.cpp:\d+ \(16 of 32 came\)",
        None,
        0,
    ),
    "two_collectives": ("divergence: reaches __ballot_sync", "__ballot_sync", 1),
    "not_in_mask": ("__shfl_xor_sync: lane 16, which calls it, is not in its mask 0000ffff", "__shfl_xor_sync(", 16),
    "source_not_in_mask": ("__shfl_sync: lane 0 reads lane 20, which is not in the mask", "1.f, 20)", 0),
    "lane_returned": ("__shfl_sync: lane 5 is in the mask ffffffff but has returned", "1.f, 0)", 6),
    "trap": (r"__trap\(\)", "__trap()", 3),
    "ldmatrix_outside": ("ldmatrix: 16 bytes at shared address .* outside", "threadIdx.x * 16", 16),
    "ldmatrix_unaligned": ("not aligned to 16 bytes", "% 8 * 8", 1),
    "copy_unaligned": ("cp.async: an address is not aligned to 16 bytes", "y + 1", 0),
    "mbarrier_uninitialised": ("this mbarrier was never initialised", "mbarrier_arrive(bar)", 0),
    "too_many_arrivals": ("more arrivals at the mbarrier than its count of 1", "expect_tx(bar, 64)", 0),
    "arrival_missing": (
        r"deadlock: no thread can run\n.*parity 0 of the mbarrier .* 1 of 65 arrivals missing",
        None,
        0,
    ),
    "named_barrier_counts": ("bar.sync 1: 32 threads, but at .* it is said to have 64", "bar_sync(1, 32)", 32),
    "grid_sync_alone": ("grid.sync in a launch that is not cooperative", "grid_sync(", 0),
    "rank_outside": ("rank 2 is not in the cluster", "cluster_map(values, 2)", 0),
    "wgmma_without_warpgroup": ("the block has no whole warpgroup here", "wgmma_fence()", 0),
    "load_without_expect": ("256 bytes more than the mbarrier was told to expect", "tma_load(tile,", 0),
    "load_without_fence": ("no fence_mbarrier_init followed", "tma_load(tile,", 0),
    "load_unaligned": ("not aligned to 128 bytes", "tma_load(tile + 4", 0),
    "load_in_flight": ("all threads of the block have returned while this TMA load is under way", "tma_load(tile,", 63),
    "partial_warp": ("mma.m16n8k16 in a warp of 16 lanes: it needs all 32", "mma_m16n8k16", 32),
    "overlapping_masks": (r"deadlock: no thread can run\n(.*\n)*.*__shfl_sync .*\(8 of 15 came\)", None, 0),
}
# By the race build alone.
RACE = {
    "writes_past_the_end": ("writes byte 256 of values, which has 256: outside", "threadIdx.x + 1] = 1", 63),
    "reads_past_the_end": ("reads byte 256 of values, which has 256: outside", "= values[threadIdx.x + 1]", 63),
    "reads_unwritten": ("reads byte 0 of values, which was never written", "= values[threadIdx.x]", 0),
    "no_syncwarp": ("thread 0 writes it at tests/simt/findings.cpp:.*, and nothing orders the two", "& ~31u]", 1),
    "atomic_then_read": ("atomically updates byte 0 of count, thread 63 reads it", "atomicAdd", 0),
    "copy_not_awaited": ("the target of a copy that has not been waited for, requested at", "= values[threadIdx.x]", 0),
    "load_not_awaited": ("the target of a copy that has not been waited for, requested at", "y[0] = tile[0]", 0),
    "atomics_then_one_reads": ("atomically updates byte 0 of count, thread 63 reads it at", "atomicAdd", 0),
    "store_overwritten": ("thread 0 reads .asynchronously. byte 0 of tile, thread 0 writes it at", "tma_store(&map", 0),
    "fence_after_arrival": ("no fence.proxy.async since the write at", "tma_store(&map", 0),
    "one_warp_waited": ("nothing orders the two|has not been waited for", "wgmma<", 32),
    "neighbour_returned": ("and that block has returned", "peer[threadIdx.x]", None),
    "store_without_proxy_fence": ("no fence.proxy.async since the write at", "tma_store(&map", 0),
}
# Launches that the hardware would refuse, and what is seen only after the block has ended: no thread, no line.
WHOLE = {
    "too_many_threads": "launch refused: block .1025,1,1. has more than 1024 threads",
    "too_much_shared": "launch refused: 233472 bytes of shared memory",
    "cluster_does_not_divide": "launch refused: grid .3,1,1. is not a multiple of the cluster",
    "empty_grid": "launch refused: grid .0,1,1. .* is empty",
    "bytes_outstanding": r"block .0,0,0. ended with 64 bytes outstanding on the mbarrier .*initialised at tests/simt/find",
}


def message(kernel: str, target: str) -> str:
    done = programs.run(programs.build(target), kernel)
    assert done.returncode == 2 and done.stdout.startswith("FINDING "), f"{done.returncode} {done.stdout}{done.stderr}"
    return done.stdout.removeprefix("FINDING ")


def check(text: str, kernel: str, what: str, line: str | None, thread: int | None) -> None:
    assert text.startswith(f"{kernel}: ") and re.search(what, text), text
    assert thread is None or f"block (0,0,0) thread ({thread},0,0)" in text, text
    if line is not None:
        number = int(re.match(rf"{kernel}: tests/simt/findings.cpp:(\d+): ", text)[1])
        assert line in SOURCE[number - 1], f"{text}\nline {number} is {SOURCE[number - 1]}"


@pytest.mark.parametrize("target", ["simt_findings", "simt_findings_race"])
@pytest.mark.parametrize("kernel", ALWAYS)
def test_message(kernel, target):
    check(message(kernel, target), kernel, *ALWAYS[kernel])


@pytest.mark.parametrize("kernel", RACE)
def test_message_of_the_race_build(kernel):
    check(message(kernel, "simt_findings_race"), kernel, *RACE[kernel])


@pytest.mark.parametrize("kernel", WHOLE)
def test_message_about_a_launch(kernel):
    assert re.search(WHOLE[kernel], message(kernel, "simt_findings"))


@pytest.mark.skipif(
    not programs.SANITIZED, reason="accesses of global memory are checked by the address sanitizer: make asan"
)
def test_read_past_the_end_of_a_tensor():
    done = programs.run(programs.build("simt_findings"), "reads_past_the_tensor")
    assert "reads_past_the_tensor: block (0,0,0) thread (0,0,0)" in done.stderr
    assert "heap-buffer-overflow" in done.stderr and "findings.cpp:" in done.stderr


@pytest.mark.skipif(programs.SANITIZED, reason="the address sanitizer reports it first, in its own words")
def test_plain_build_sees_what_was_overwritten():
    assert "wrote outside its shared memory: byte 256 of values" in message("writes_past_the_end", "simt_findings")


RIGHT = ["syncwarp", "bytes_side_by_side", "half_then_whole", "xor_across_segments", "own_rows_of_a", "same_layout"]


@pytest.mark.parametrize("order", ["plain", "reverse", "random"])
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernel_has_no_finding(kernel, order):
    done = programs.run(programs.build("simt_findings_race"), kernel, env={"DLOPS_SIMT_ORDER": order})
    assert done.returncode == 0, done.stdout
