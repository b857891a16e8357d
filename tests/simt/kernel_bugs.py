"""Bugs for the runner's own test kernels (tests/simt/kernels): each barrier, fence and wait removed, parities and byte counts
swapped. Every one must show in the race build, as a finding or as a wrong result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelBug:
    """`old` in kernels/<program>.cuh, which holds it once, becomes `new`; `finding`: what the message must say, or "" where
    wrong numbers are the symptom."""

    name: str
    program: str
    old: str
    new: str
    finding: str = ""


def _without(name: str, program: str, line: str, finding: str = "") -> KernelBug:
    return KernelBug(name, program, line, "", finding)


BUGS = [
    _without(
        "part_reused", "pointwise", "  __syncthreads();  // the last use of part is over\n", "nothing orders the two"
    ),
    _without("part_unwritten", "pointwise", "  __syncthreads();  // part is written\n", "never written"),
    _without("scan", "pointwise", "  __syncthreads();  // values are written\n", "nothing orders the two"),
    _without("grid_sync", "pointwise", "  dlops::ptx::grid_sync();\n"),
    KernelBug("wait_too_little", "flash", "cp_async_wait<1>", "cp_async_wait<2>", "has not been waited for"),
    _without("stage_not_there", "flash", "    __syncthreads();  // this stage is there\n", "nothing orders the two"),
    _without(
        "stage_reused", "flash", "    __syncthreads();  // the next load overwrites this stage\n", "nothing orders"
    ),
    KernelBug("v_not_transposed", "flash", "ldmatrix_trans(", "ldmatrix("),
    _without("first_tile_missing", "flash", "  load_tile<D>(sk, k, 0, p.lk, k_stride);\n", "never written"),
    KernelBug(
        "consumer_parity",
        "gemm",
        "mbarrier_wait(full + s, round & 1)",
        "mbarrier_wait(full + s, (round & 1) ^ 1)",
        "has not been waited for",
    ),
    KernelBug(
        "producer_parity",
        "gemm",
        "mbarrier_wait(empty + s, (round & 1) ^ 1)",
        "mbarrier_wait(empty + s, round & 1)",
        "deadlock",
    ),
    KernelBug(
        "expects_more",
        "gemm",
        "expect_tx(full + s, kBytesA + kBytesB)",
        "expect_tx(full + s, kBytesA + kBytesB + 1024)",
        "1024 bytes outstanding",
    ),
    KernelBug(
        "expects_less",
        "gemm",
        "expect_tx(full + s, kBytesA + kBytesB)",
        "expect_tx(full + s, kBytesA)",
        "has not been waited for",
    ),
    KernelBug(
        "wrong_swizzle",
        "gemm",
        "a + s * kBytesA + k * 32, 16, 1024, Swizzle::b128",
        "a + s * kBytesA + k * 32, 16, 1024, Swizzle::b64",
    ),
    KernelBug(
        "wrong_stride",
        "gemm",
        "b + s * kBytesB + k * 32, 16, 1024, Swizzle::b128",
        "b + s * kBytesB + k * 32, 16, 512, Swizzle::b128",
    ),
    _without("no_wgmma_fence", "gemm", "    dlops::ptx::wgmma_fence();\n", "without wgmma_fence"),
    _without("no_wgmma_commit", "gemm", "    dlops::ptx::wgmma_commit();\n", "no wgmma_wait covers it"),
    _without("no_wgmma_wait", "gemm", "  dlops::ptx::wgmma_wait<0>();\n"),
    KernelBug(
        "released_early",
        "gemm",
        "    dlops::ptx::wgmma_wait<1>();  // the step before is done: its stage is free\n"
        "    if (i > 0 && threadIdx.x % 128 == 0) dlops::ptx::mbarrier_arrive(empty + (i - 1) % kStages);\n",
        "    if (threadIdx.x % 128 == 0) dlops::ptx::mbarrier_arrive(empty + s);\n    dlops::ptx::wgmma_wait<1>();\n",
        "has not been waited for",
    ),
    KernelBug("released_by_one", "gemm", "mbarrier_init(empty + s, kConsumers)", "mbarrier_init(empty + s, 1)"),
    _without(
        "mbarriers_not_there", "gemm", "  __syncthreads();  // the mbarriers are there\n", "nothing orders the two"
    ),
    _without("no_init_fence", "gemm", "    dlops::ptx::fence_mbarrier_init();\n", "no fence_mbarrier_init followed"),
    KernelBug(
        "tiles_unaligned", "gemm", "(unsigned char, tiles, 1024)", "(unsigned char, tiles, 128)", "not aligned to 1024"
    ),
    _without(
        "neighbour_not_there",
        "cluster",
        "  dlops::ptx::cluster_sync();  // the neighbour's values are written\n",
        "never written",
    ),
    _without(
        "neighbour_gone", "cluster", "  dlops::ptx::cluster_sync();  // nobody leaves while others read\n", "is gone"
    ),
    KernelBug(
        "no_proxy_fence",
        "proxy",
        "  dlops::ptx::fence_proxy_async();\n  __syncthreads();  // the tiles are written\n",
        "  __syncthreads();\n",
        "no fence.proxy.async",
    ),
    _without("tiles_unwritten", "proxy", "  __syncthreads();  // the tiles are written\n", "nothing orders the two"),
    _without("mbarrier_not_there", "proxy", "  __syncthreads();  // the mbarrier is there\n", "nothing orders the two"),
    _without("load_not_awaited", "proxy", "  dlops::ptx::mbarrier_wait(bar, 0);\n", "has not been waited for"),
    KernelBug("expects_half", "proxy", "expect_tx(bar, 16384)", "expect_tx(bar, 8192)", "has not been waited for"),
    KernelBug("wrong_major", "proxy", "Major::k, Major::mn", "Major::k, Major::k"),
    _without(
        "store_not_awaited",
        "proxy",
        "    if (threadIdx.x == 0) dlops::ptx::tma_store_wait_read<1>();\n",
        "nothing orders the two",
    ),
    _without(
        "store_overtaken",
        "proxy",
        "    __syncthreads();  // the store of two tiles ago has read this buffer\n",
        "nothing orders the two",
    ),
    KernelBug(
        "no_store_fence",
        "proxy",
        "    dlops::ptx::fence_proxy_async();\n    __syncthreads();",
        "    __syncthreads();",
        "no fence.proxy.async",
    ),
    _without("buffer_unwritten", "proxy", "    __syncthreads();  // the buffer is written\n", "nothing orders the two"),
    _without(
        "store_unfinished",
        "proxy",
        "  if (threadIdx.x == 0) dlops::ptx::tma_store_wait<0>();\n",
        "may still read shared memory",
    ),
]
