"""Who writes to which memory: weights that share a buffer, `out` that is an input, versions, what autograd keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import nn
from dlops.functional import conv2d, linear


def randn(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


@torch.no_grad()
def test_computed_weights_that_share_a_buffer():
    """A compiler reuses the memory of the first weight for the second: neither may be taken for the other."""
    x, a, b = randn(1, 16, 24, 24), randn(16, 16, 3, 3) / 12, randn(16, 16, 3, 3) / 12
    buffer = torch.empty_like(a)
    for weight in (a, b, 2 * a):
        buffer.set_(weight.clone())
        want = F.conv2d(x, weight, padding=1)
        torch.testing.assert_close(conv2d(x, buffer, padding=1, variant="winograd"), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_parameter_that_moves_within_its_storage():
    module, x, big = nn.Conv2d(16, 16, 3, padding=1), randn(1, 16, 24, 24), randn(2, 16, 16, 3, 3)
    for data in (big[0], big[1], big[1].transpose(0, 1)):
        module.weight.data = data
        want = F.conv2d(x, module.weight, module.bias, padding=1)
        torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_shared_memory_is_not_kept():
    module = nn.Conv2d(16, 16, 3, padding=1).share_memory()
    module(randn(1, 16, 24, 24))
    assert dlops.clear_cache(module) == 0


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("variant", ["naive", "direct", "winograd", "winograd_f2"])
def test_out_may_be_an_input(variant, last):
    layout = torch.channels_last if last else torch.contiguous_format
    x, w = randn(1, 20, 9, 20).contiguous(memory_format=layout), randn(20, 20, 3, 3) / 13
    residual = randn(1, 20, 9, 20).flip(0).contiguous(memory_format=layout)
    want = F.conv2d(x, w, padding=1) + residual
    for shared in (residual, x):
        given = x.clone(memory_format=torch.preserve_format), residual.clone(memory_format=torch.preserve_format)
        out = given[1] if shared is residual else given[0]
        conv2d(given[0], w, padding=1, residual=given[1], out=out, variant=variant)
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_out_is_a_write_that_autograd_sees():
    a, x, w = randn(1, 8, 9, 9).requires_grad_(), randn(1, 8, 9, 9), randn(8, 8, 3, 3)
    s = torch.sigmoid(a)
    with torch.no_grad():
        conv2d(x, w, padding=1, out=s, variant="direct")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.sum().backward()
    with pytest.raises(RuntimeError, match="out="):
        conv2d(x, w, padding=1, out=torch.empty(1, 8, 9, 9, requires_grad=True), variant="direct")
    with pytest.raises(ValueError, match="out is torch.float64"):
        conv2d(x, w, padding=1, out=torch.empty(1, 8, 9, 9).double())


def test_what_is_added_may_be_written_to_afterwards():
    x, w, b, residual = randn(1, 8, 9, 9), randn(8, 8, 3, 3), randn(8), randn(1, 8, 9, 9)
    for t in (x, w):
        t.requires_grad_()
    y = conv2d(x, w, b, padding=1, residual=residual, variant="direct")
    b.add_(1)
    residual.add_(1)
    grads = torch.autograd.grad(y.sum(), (x, w))
    torch.testing.assert_close(grads, torch.autograd.grad(F.conv2d(x, w, padding=1).sum(), (x, w)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_autocast_does_not_change_what_comes_after_it():
    x, w = randn(8, 64, 16, 16), randn(64, 64, 3, 3)
    before = dlops.explain(conv2d, x, w, padding=1)[0].uses
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x, w, padding=1).dtype is torch.bfloat16
    with torch.profiler.profile() as profile:
        conv2d(x, w, padding=1)
    ran = {event.name for event in profile.events()}
    assert ("dlops::conv" in ran) == (before == "dlops")


def test_trace_takes_torchs_own():
    module = nn.Conv2d(16, 16, 3, padding=1)
    x = randn(1, 16, 24, 24)
    with torch.no_grad():
        module(x)
        traced = torch.jit.trace(module, x)
        module.weight.mul_(2)
        torch.testing.assert_close(traced(x), module(x), rtol=1e-4, atol=1e-4)


def test_linear_with_a_vector_for_a_weight():
    x, w = randn(4, 8), randn(8)
    assert torch.equal(linear(x, w, activation="relu"), F.relu(F.linear(x, w)))
    for activation in ("none", "swish"):
        with pytest.raises(ValueError, match="activation must be None or one of"):
            linear(x, randn(3, 8), activation=activation)


def test_packing_asks_whether_the_kernel_takes_it():
    w = randn(64, 64, 1, 1)
    with pytest.raises(ValueError, match="variant 'winograd' is for"):
        torch.ops.dlops.conv_pack(w, [8, 8], [1, 1], [0, 0, 0, 0], [1, 1], 1, False, "winograd")
