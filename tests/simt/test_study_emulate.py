"""dlops.study.emulate: what it returns, what its report says, what it refuses."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

import dlops
from dlops import study
from dlops.functional import diffusion_step, group_norm, layer_norm, randn

pytest.importorskip("dlops._simt_race", reason="the race build of the simt runner is not built")
X = torch.randn(10, 8, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("race", [False, True])
def test_outputs_and_report(race):
    result = study.emulate("group_norm", X, 1, activation="silu", race=race)
    assert torch.allclose(result.outputs, group_norm(X, 1, activation="silu"), atol=1e-5)
    (launch,) = result.report.launches
    assert launch.kernel.startswith("group_norm_block<float") and launch.grid == (8, 1, 1) and launch.block == (64, 1, 1)
    # 10 groups; each has a block_reduce (2 barriers) and one more; two warps, 2 x 3 x 6 shuffles each.
    assert launch.barriers == 30 and launch.cluster == (1, 1, 1) and launch.warp_collectives == 10 * 2 * 2 * 3 * 6
    assert launch.shared_bytes >= 32 * 12 + 512 * 8
    assert result.report.findings == () and result.report.trace == () and result.grads is None
    text = str(result.report)
    assert "no findings" in text and "group_norm_block" in text and "720" in text
    if race:
        # A group is 240 chunks of 16 bytes, read by 8 warps and written by 8; its mean and rstd are written by one thread.
        assert (launch.global_requests, launch.global_sectors) == (10 * (8 + 8 + 2), 10 * (120 + 120 + 2))
        assert launch.bank_conflicts == 0 and launch.sectors_per_request == 242 / 18
    else:
        assert launch.sectors_per_request is None


@pytest.mark.parametrize("order, seed", [("plain", 1), ("reverse", 1), ("random", 3)])
def test_order_and_seed(order, seed):
    report = study.emulate("layer_norm", X.flatten(1), (960,), order=order, seed=seed).report
    assert (report.order, report.seed, report.race, report.findings) == (order, seed, True, ())
    assert report.launches[0].kernel.startswith("row_norm_fused<float")


def test_kernel_by_name():
    step = study.emulate("step_naive", X, X, torch.ones(1, 11), 0)
    assert step.report.op == "diffusion_step" and step.report.launches[0].kernel.startswith("step_naive<")
    assert torch.equal(step.outputs[0], diffusion_step(X, X, torch.ones(1, 11), 0)[0])
    naive = study.emulate("row_norm_naive", X, (10,), race=False)
    assert naive.report.op == "layer_norm" and torch.allclose(naive.outputs, layer_norm(X, (10,)), atol=1e-5)
    assert torch.equal(study.emulate("randn", (2, 7), seeds=[1, 2]).outputs, randn((2, 7), seeds=[1, 2]))


def test_backward():
    x = X.clone().requires_grad_()
    weight = torch.ones(8, requires_grad=True)
    grad = torch.randn_like(X)
    result = study.emulate("group_norm_combine", x, 2, weight, grad=grad)
    expected = torch.autograd.grad(group_norm(x, 2, weight), (x, weight), grad)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(result.grads, expected))
    kernels = [launch.kernel.split("<")[0] for launch in result.report.launches]
    assert kernels == ["group_norm_block", "group_norm_sums", "group_norm_combine", "column_sums", "group_norm_dx"]


def test_a_thread_of_its_own():
    """The switch is of one thread, ends with its context, nests, and leaves the options as they were."""
    from dlops import _simt

    before = _simt.options()
    with study.emulation(order="reverse", seed=5, threads=1):
        assert _simt.options() == {"order": "reverse", "seed": 5, "threads": 1}
        _simt.begin()
        with study.emulation(order="random"):
            randn((1, 4), seeds=[1])
        randn((1, 4), seeds=[1])
        elsewhere = threading.Thread(target=lambda: randn((1, 4), seeds=[1]))
        elsewhere.start()
        elsewhere.join()
        assert len(_simt.end()["launches"]) == 2
    _simt.begin()
    randn((1, 4), seeds=[1])
    assert _simt.end()["launches"] == [] and _simt.options() == before


BAD = {
    "name": (dict(name="softmax"), ValueError, "unknown op or kernel 'softmax': there are the ops add_noise, .*group_norm_naive"),
    "order": (dict(order="backwards"), ValueError, "order must be one of plain, reverse, random: got 'backwards'"),
    "trace": (dict(trace=3), ValueError, r"trace must be \(block, thread\), each an int or \(x, y, z\): got 3"),
    "trace index": (dict(trace=(0, (1, 2))), ValueError, "trace must be"),
    "device": (dict(weight=torch.ones(8, device="meta")), ValueError, "every tensor must be on the CPU: got one on meta"),
    "variant": (dict(name="group_norm_naive", variant="fused"), ValueError, "group_norm_naive is variant 'naive': got"),
    "other kernel": (dict(name="group_norm_stats"), ValueError, "group_norm_stats did not run: .* launches group_norm_block"),
    "backward": (dict(name="group_norm_dx"), ValueError, "group_norm_dx is a backward kernel: give grad="),
    "no gradient": (dict(grad=X), ValueError, "no tensor requires grad"),
    "the op's own": (dict(num_groups=3), ValueError, "num_groups must divide the 8 channels"),
    "dtype": (dict(input=X.double()), RuntimeError, "float64 has no kernel"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, error, message = BAD[case]
    arguments = {"name": "group_norm", "input": X, "num_groups": 2, **changes}
    with pytest.raises(error, match=message):
        study.emulate(arguments.pop("name"), **arguments)
    assert torch.equal(randn((1, 4), seeds=[1]), randn((1, 4), seeds=[1]))  # and nothing is left behind


def test_trace_of_a_kernel():
    """What the kernels record by themselves: thread 3 of block 1 has rows 1 and 9 of 10."""
    x = torch.randn(10, 2000, generator=torch.Generator().manual_seed(1))
    report = study.emulate("layer_norm", x, (2000,), trace=(1, 3)).report
    found = {name: [t.value for t in report.trace if t.name == name] for name in ("mean", "rstd")}
    assert found["mean"] == pytest.approx([float(x[row].mean()) for row in (1, 9)], abs=1e-6)
    assert found["rstd"] == pytest.approx([float(1 / x[row].std(correction=0)) for row in (1, 9)], rel=1e-4)


def test_not_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlops._simt_race", None)
    with pytest.raises(ImportError, match="make build"):
        dlops.study.emulate("randn", (1, 4), seeds=[1])
