"""dlops._C: direct kernel calls on any DLPack tensor, without torch in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlops import _C
from dlops.functional import diffusion_step, group_norm


@pytest.mark.parametrize("variant", ["naive", "fused"])
def test_step_on_numpy_arrays(variant):
    rng = np.random.default_rng(0)
    x, m, table = (rng.standard_normal(s, dtype=np.float32) for s in [(2, 3, 50), (2, 3, 50), (4, 11)])
    table = np.abs(table)  # the clip column is a magnitude
    out, x0 = np.empty_like(x), np.empty_like(x)
    seeds = np.array([5, 6])
    _C.diffusion_step(out, x, m, table, 2, seeds=seeds, out_x0=x0, variant=variant)
    prev, denoised = diffusion_step(*map(torch.from_numpy, (x, m, table)), 2, seeds=torch.from_numpy(seeds))
    assert np.array_equal(out, prev.numpy()) and np.array_equal(x0, denoised.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_group_norm(dtype):
    x, w, b = torch.randn(2, 8, 5, 5).to(dtype), torch.randn(8), torch.randn(8)
    out, stats = torch.empty_like(x), torch.empty(2, 2, 4)
    _C.group_norm(out, stats, x, 4, weight=w, bias=b, silu=True)
    assert torch.equal(out, group_norm(x, 4, w, b, activation="silu", variant="fused"))
    assert torch.allclose(stats[1], x.float().view(2, 4, -1).mean(-1), atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: _C.randn([1.0], torch.tensor([1])), "out is no DLPack tensor"),
        (lambda: _C.randn(torch.empty(2, 4).t(), torch.tensor([1])), "out must be contiguous"),
        (lambda: _C.randn(torch.empty(2, 4), torch.tensor([1])), "seeds must have one entry per sample"),
        (lambda: _C.randn(torch.empty(2, 4), torch.tensor([1.0, 2.0])), "seeds must be int64"),
        (lambda: _C.randn(torch.empty(2, 4).double(), torch.tensor([1, 2])), "out must be float32, float16 or bfloat16"),
        (lambda: _C.randn(torch.tensor(1.0), torch.tensor([1])), "out has too few dimensions"),
        (lambda: _C.randn(torch.empty(1), torch.tensor([1]), variant="x"), "unknown variant 'x'"),
        (lambda: _C.group_norm(*[torch.empty(1, 4, 2)] * 3, 3), "groups must divide"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty():
    _C.randn(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
