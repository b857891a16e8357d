"""The specification itself: against torch's own function where torch has the option, its derivatives, its dropout mask."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops.functional import merge_attention, scaled_dot_product_attention
from dlops.reference import attention as reference
from dlops.reference.philox import philox


@pytest.fixture(autouse=True)
def _torchs():
    with dlops.backend("torch"):
        yield


def _qkv(b=2, h=4, hk=2, lq=7, lk=9, d=5):
    return [torch.randn(b, n, rows, d, dtype=torch.float64) for n, rows in ((h, lq), (hk, lk), (hk, lk))]


def _torchs_own(q, k, v, mask):
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), mask)


@pytest.mark.parametrize("window", [(3, 1), (None, 0), (2, None), 1])
def test_windows_are_masks(window):
    q, k, v = _qkv()
    left, right = window if isinstance(window, tuple) else (window, window)
    i, j = torch.arange(7)[:, None], torch.arange(9)
    seen = (j >= i - (99 if left is None else left)) & (j <= i + (99 if right is None else right))
    ours = scaled_dot_product_attention(q, k, v, window=window, enable_gqa=True)
    torch.testing.assert_close(ours, _torchs_own(q, k, v, seen))


def test_alibi_is_a_bias():
    q, k, v = _qkv()
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
    distance = (torch.arange(7)[:, None] - torch.arange(9)).abs()
    ours = scaled_dot_product_attention(q, k, v, alibi_slopes=slopes, enable_gqa=True)
    torch.testing.assert_close(ours, _torchs_own(q, k, v, -slopes[:, None, None] * distance))


def test_lengths_stand_at_the_end_of_the_keys():
    q, k, v = _qkv()
    lengths = torch.tensor([4, 9])
    ours = scaled_dot_product_attention(q, k, v, is_causal=True, key_lengths=lengths, enable_gqa=True)
    for b, n in enumerate(lengths.tolist()):
        seen = torch.arange(n) <= torch.arange(7)[:, None] + n - 7
        want = _torchs_own(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], seen).nan_to_num()
        torch.testing.assert_close(ours[b : b + 1], want)


def test_a_sink_is_a_logit_without_a_value():
    q, k, v = _qkv()
    sinks = torch.randn(4, dtype=torch.float64)
    ours, lse = scaled_dot_product_attention(q, k, v, sinks=sinks, enable_gqa=True, return_lse=True)
    s = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(5)
    p = torch.cat([s, sinks.reshape(1, 4, 1, 1).expand(2, 4, 7, 1)], dim=-1).softmax(-1)[..., :-1]
    torch.testing.assert_close(ours, p @ v.repeat_interleave(2, 1))
    torch.testing.assert_close(lse, s.logsumexp(-1))


@pytest.mark.parametrize("sinks", [False, True])
def test_derivatives_of_any_kind(sinks):
    """gradcheck, gradgradcheck and forward mode, with rows that see no key."""
    q, k, v = (t.requires_grad_() for t in _qkv(1, 2, 1, 3, 4, 2))
    bias = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    bias[:, :, 1] = -math.inf
    extra = [torch.randn(2, dtype=torch.float64, requires_grad=True)] if sinks else []

    def fn(q, k, v, *extra):
        return scaled_dot_product_attention(
            q, k, v, bias, softcap=2.0, sinks=extra[0] if extra else None, enable_gqa=True, return_lse=True
        )[0]

    assert torch.autograd.gradcheck(fn, (q, k, v, *extra), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fn, (q, k, v, *extra))


def test_merge_is_the_attention_over_all_keys():
    q, k, v = _qkv()
    whole = scaled_dot_product_attention(q, k, v, enable_gqa=True, return_lse=True)
    cuts = [(0, 2), (2, 3), (3, 9)]
    parts = [scaled_dot_product_attention(q, k[:, :, a:b], v[:, :, a:b], enable_gqa=True, return_lse=True) for a, b in cuts]
    none = (torch.zeros_like(whole[0]), torch.full_like(whole[1], -math.inf))  # a part in which nothing is seen
    merged = merge_attention(*zip(*parts, none))
    for ours, want in zip(merged, whole):
        torch.testing.assert_close(ours, want)
    out, lse = merge_attention([none[0]] * 2, [none[1]] * 2)
    assert (out == 0).all() and (lse == -math.inf).all()


def test_dropout_mask_is_philox():
    rng = torch.tensor([-3, 2**40 + 5])
    kept = reference.dropout_mask(rng, 0.25, 1, 3, range(2, 5), 10, first_batch=2)
    assert kept.shape == (1, 3, 3, 10)
    key = (torch.tensor(2**32 - 3), torch.tensor(2**32 - 1))
    for h, row, j in ((0, 2, 0), (2, 4, 9), (1, 3, 5)):
        words = philox([torch.tensor(c) for c in (j // 4, row, 2 * 3 + h, 5)], key)
        assert kept[0, h, row - 2, j] == (words[j % 4] >= 2**30)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_and_turns_back(interleaved):
    x = torch.randn(2, 3, 5, 10, dtype=torch.float64)
    angles = torch.rand(5, 4, dtype=torch.float64)
    y = reference.apply_rotary(x, angles.cos(), angles.sin(), interleaved=interleaved)
    assert torch.equal(y[..., 8:], x[..., 8:])
    pairs = (lambda t: t[..., :8].unflatten(-1, (4, 2))) if interleaved else lambda t: t[..., :8].unflatten(-1, (2, 4)).mT
    turned = torch.view_as_complex(pairs(x).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(torch.view_as_complex(pairs(y).contiguous()), turned)
    torch.testing.assert_close(reference.apply_rotary(y, angles.cos(), angles.sin(), interleaved=interleaved, inverse=True), x)
