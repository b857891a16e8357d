"""Rotary positions: against float64, gradients of any order, layouts, bad input."""

from __future__ import annotations

import pytest
import torch

from dlops.functional import apply_rotary
from dlops.reference import attention as reference
from tests.attention.calls import check_rule

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (B, H, Hk, L, D, R)
SHAPES = [(2, 3, 1, 7, 64, 64), (1, 2, 2, 5, 20, 6), (1, 1, 1, 3, 2, 2), (2, 4, 2, 9, 128, 32)]


def tables(length, rotary, batch=None):
    angles = torch.rand(*([] if batch is None else [batch]), length, rotary // 2) * 6
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(device, dtype, interleaved):
    for b, h, hk, length, d, r in SHAPES:
        for batch in (None, b):
            cos, sin = (t.to(device.torch_device) for t in tables(length, r, batch))
            q, k = (torch.randn(b, n, length, d).to(device.torch_device, dtype) for n in (h, hk))
            leaves = [t.detach().requires_grad_() for t in (q, k)]
            turned = apply_rotary(*leaves, cos, sin, interleaved=interleaved)
            grads = torch.autograd.grad(turned, leaves, [torch.ones_like(t) for t in turned])
            for x, y, dx in zip((q, k), turned, grads):
                for got, of, inverse in ((y.detach(), x, False), (dx, torch.ones_like(x), True)):
                    options = dict(interleaved=interleaved, inverse=inverse)
                    same, exact = (reference.apply_rotary(t, cos, sin, **options) for t in (of, of.double()))
                    check_rule(got, same, exact, f"{(b, h, hk, length, d, r)}", dtype)


@pytest.mark.parametrize("layout", ["blhd", "sliced"])
def test_layouts(device, layout):
    make = {
        "blhd": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda t: torch.cat([t, t], dim=-1)[..., :16],
    }
    q, k = (torch.randn(2, 3, 6, 16, device=device.torch_device) for _ in range(2))
    cos, sin = (t.to(device.torch_device) for t in tables(6, 16))
    for a, b in zip(apply_rotary(make[layout](q), make[layout](k), cos, sin), apply_rotary(q, k, cos, sin)):
        assert torch.equal(a, b)


def test_tables_in_the_dtype(device):
    q = torch.randn(1, 2, 6, 16, device=device.torch_device).bfloat16()
    cos, sin = (t.to(device.torch_device).bfloat16() for t in tables(6, 16))
    for a, b in zip(apply_rotary(q, q, cos, sin), apply_rotary(q, q, cos.float(), sin.float())):
        assert torch.equal(a, b)


def test_second_derivative():
    q = torch.randn(1, 2, 4, 6, requires_grad=True)
    cos, sin = tables(4, 6)
    y = apply_rotary(q, q, cos, sin)[0]
    (dq,) = torch.autograd.grad(y.pow(3).sum(), q, create_graph=True)
    (ddq,) = torch.autograd.grad(dq.sum(), q)
    exact = torch.func.hessian(lambda x: reference.apply_rotary(x, cos.double(), sin.double()).pow(3).sum())(q.detach().double())
    torch.testing.assert_close(ddq.double(), exact.flatten(4).sum(-1).reshape(q.shape), rtol=1e-4, atol=1e-4)


def test_empty(device):
    q = torch.randn(0, 2, 4, 8, device=device.torch_device)
    assert apply_rotary(q, q, *(t.to(device.torch_device) for t in tables(4, 8)))[0].shape == q.shape


def test_bad_input():
    q, (cos, sin) = torch.randn(1, 2, 4, 8), tables(4, 8)
    with pytest.raises(ValueError, match=r"query must be \[batch, heads, length, d\]: got shape \[2, 4, 8\]"):
        apply_rotary(q[0], q, cos, sin)
    with pytest.raises(ValueError, match="cos and sin must be"):
        apply_rotary(q, q, cos, sin[:2])
    with pytest.raises(ValueError, match="which does not fit query"):
        apply_rotary(q, q, *tables(5, 8))
    with pytest.raises(ValueError, match="which does not fit query"):
        apply_rotary(q, q, *tables(4, 10))
    with pytest.raises(TypeError, match="cos must be a tensor: got int"):
        apply_rotary(q, q, 1, sin)
