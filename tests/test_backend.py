"""dlops.backend, dlops.explain and dlops.kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlops
from dlops.functional import diffusion_step, group_norm, randn

ROOT = Path(dlops.__file__).parents[1]


def test_backend_restores_as_context_manager_and_sets_as_call():
    assert dlops.backend.current() == "auto"
    with dlops.backend("torch"):
        assert dlops.backend.current() == "torch"
        with dlops.backend("dlops"):
            assert dlops.backend.current() == "dlops"
        assert dlops.backend.current() == "torch"
    assert dlops.backend.current() == "auto"
    try:
        dlops.backend("torch")
        assert dlops.backend.current() == "torch"
    finally:
        dlops.backend("auto")


def test_backend_rejects_unknown_names():
    with pytest.raises(ValueError, match="got 'cudnn', expected one of auto, dlops, torch"):
        dlops.backend("cudnn")


def test_backend_from_the_environment():
    code = "import dlops; print(dlops.backend.current(), dlops.cpu_isa())"
    env = {"DLOPS_BACKEND": "torch", "DLOPS_CPU_ISA": "generic", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["torch", "generic"]


def test_bad_instruction_set_is_a_clear_error():
    with pytest.raises(ValueError, match="cpu_isa: got 'sse9', this CPU has generic"):
        dlops.cpu_isa("sse9")


def test_forced_backend_says_what_is_unsupported():
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    with dlops.backend("dlops"), pytest.raises(RuntimeError, match="float64"):
        group_norm(x, 2)


def test_explain_lists_plans_without_running():
    def calls(x):
        y = group_norm(x, 32, activation="silu")
        return y + randn(tuple(y.shape), seeds=[1, 2], step=0)

    plans = dlops.explain(calls, torch.randn(2, 320, 64, 64))
    assert [p.op for p in plans] == ["group_norm", "randn"]
    assert all(p.uses == "dlops" and p.variant == "fused" and p.device == "cpu" for p in plans)
    assert all(p.flops > 0 and p.bytes > 0 and p.bound in ("memory", "compute") for p in plans)
    assert plans[0].source.startswith("csrc/norm/")
    with dlops.backend("torch"):
        assert {p.uses for p in dlops.explain(calls, torch.randn(2, 320, 64, 64))} == {"torch"}


def test_explain_covers_modules_and_leaves_schedulers_alone():
    block = torch.nn.Sequential(dlops.nn.GroupNorm(2, 8, activation="silu"), torch.nn.Conv2d(8, 8, 3))
    assert [p.op for p in dlops.explain(block, torch.randn(1, 8, 6, 6))] == ["group_norm"]
    dlops.accelerate(block)
    assert [p.op for p in dlops.explain(block, torch.randn(1, 8, 6, 6))] == ["group_norm", "conv"]
    scheduler = dlops.diffusion.DDIMScheduler()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 4, 8, 8)
    plans = dlops.explain(scheduler.step, x, scheduler.timesteps[0], x)
    assert [p.op for p in plans] == ["diffusion_step"]
    assert torch.isfinite(scheduler.step(x, scheduler.timesteps[0], x).prev_sample).all()


def test_every_kernel_row_points_at_its_source():
    rows = dlops.kernels()
    assert {"diffusion_step", "randn", "add_noise", "group_norm"} <= {k.op for k in rows}
    for kernel in rows:
        path, line = kernel.source.rsplit(":", 1)
        text = (ROOT / path).read_text().splitlines()
        nearby = "\n".join(text[int(line) - 3 : int(line) + 12])
        assert kernel.name in nearby, f"{kernel.name} is not near {kernel.source}"
        assert kernel.architectures and kernel.dtypes


def test_every_family_has_a_naive_and_a_fused_rung():
    for device in {k.device for k in dlops.kernels()}:
        for op in ("diffusion_step", "randn", "group_norm"):
            rungs = {k.variant for k in dlops.kernels() if k.op == op and k.device == device}
            assert {"naive", "fused"} <= rungs


def test_unknown_variant_lists_this_devices():
    x = torch.randn(1, 2, 3)
    with pytest.raises(ValueError, match="unknown variant 'warp': this device has naive, fused"):
        diffusion_step(x, x, torch.ones(1, 11), 0, variant="warp")


def test_nn_falls_through_to_torch():
    assert dlops.nn.BatchNorm2d is torch.nn.BatchNorm2d
    assert "Transformer" in dir(dlops.nn)
    with pytest.raises(AttributeError, match="Convolution9d"):
        _ = dlops.nn.Convolution9d


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: dlops.nn.GroupNorm(2, 64), (2, 64, 24, 24)),
        (lambda: dlops.nn.LayerNorm(512), (128, 512)),
        (lambda: dlops.nn.Conv2d(16, 16, 3, padding=1), (2, 16, 24, 24)),
        (lambda: dlops.nn.GRU(8, 16), (5, 3, 8)),
        (lambda: dlops.nn.LSTM(8, 16), (5, 3, 8)),
    ],
    ids=["GroupNorm", "LayerNorm", "Conv2d", "GRU", "LSTM"],
)
def test_compiled_transforms(make, shape):
    """torch.func.grad within a compiled function, where our ops have no rule for the transform, and without one."""
    torch._dynamo.reset()
    module, x = make(), torch.randn(shape)

    def loss(x):
        y = module(x)
        return (y[0] if isinstance(y, tuple) else y).square().sum()

    compiled = torch.compile(lambda x: (torch.func.grad(loss)(x), loss(x)), backend="aot_eager")
    with torch.no_grad():
        grad, value = compiled(x)
    want = torch.func.grad(loss)(x)
    torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(value, loss(x).detach(), rtol=1e-4, atol=1e-4)
