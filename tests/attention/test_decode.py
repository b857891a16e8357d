"""Decoding: few rows over a cache. The cache's capacity and the batch change no bit; what lies past the lengths is not read."""

from __future__ import annotations

import math

import pytest
import torch

from dlops.functional import attention_decode, scaled_dot_product_attention
from tests.attention.calls import Call

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def lengths(shape):
    return torch.linspace(shape[4], max(1, shape[4] // 3), shape[0]).int()


# (B, H, Hk, Lq, Lk, D, Dv): past a piece of the keys, one head and groups of 3 and 8, odd head dimensions.
SHAPES = [(2, 8, 1, 1, 700, 128, 128), (1, 6, 2, 1, 1100, 40, 72), (2, 2, 2, 3, 513, 1, 5), (1, 1, 1, 16, 64, 256, 64)]

OPTIONS = [{}, {"key_lengths": lengths, "is_causal": True}, {"key_lengths": lengths, "window": (60, 0), "softcap": 3.0}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(device, dtype):
    for shape in [(2, 4, 1, 1, 150, 40, 24), (1, 2, 2, 3, 70, 8, 8)] if device.simt else SHAPES:
        for options in OPTIONS:
            Call(shape, dtype, device.torch_device, **options).check("split", grad=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_capacity_and_batch_change_no_bit(device, dtype):
    keys = 90 if device.simt else 1300
    n = torch.tensor([keys, keys // 3, 7], dtype=torch.int32, device=device.torch_device)
    q = torch.randn(3, 4, 1, 32, device=device.torch_device).to(dtype)
    cache = torch.full((2, 3, 2, keys + 77, 32), math.nan, device=device.torch_device).to(dtype)
    for b, length in enumerate(n.tolist()):
        cache[:, b, :, :length] = torch.randn(2, 2, length, 32).to(dtype)
    whole = attention_decode(q, *cache, n)
    assert whole.isfinite().all()
    assert torch.equal(attention_decode(q, *cache[:, :, :, :keys], n), whole)
    assert torch.equal(attention_decode(q, *cache.transpose(2, 3).contiguous().transpose(2, 3), n), whole)
    for b in range(3):
        assert torch.equal(attention_decode(q[b : b + 1], *cache[:, b : b + 1], n[b : b + 1]), whole[b : b + 1])


def test_rows_are_causal_among_themselves(device):
    """Three new rows at once give what three single steps give."""
    q, k, v = (torch.randn(1, 2, rows, 16, device=device.torch_device) for rows in (3, 40, 40))
    together = attention_decode(q, k, v, torch.tensor([40], device=device.torch_device))
    for i in range(3):
        one = attention_decode(q[:, :, i : i + 1], k, v, torch.tensor([38 + i], device=device.torch_device))
        torch.testing.assert_close(together[:, :, i : i + 1], one)


def test_gradients_of_a_step(device):
    call = Call((2, 4, 2, 2, 50, 16, 16), torch.float32, device.torch_device, key_lengths=lengths, is_causal=True)
    call.check()


def test_one_row_of_torchs_function_takes_the_same_kernel(device):
    q, k, v = (torch.randn(1, 2, rows, 16, device=device.torch_device) for rows in (1, 90, 90))
    n = torch.tensor([90], device=device.torch_device)
    assert torch.equal(scaled_dot_product_attention(q, k, v), attention_decode(q, k, v, n))


def test_bad_lengths():
    q, k = torch.randn(2, 2, 1, 8), torch.randn(2, 2, 9, 8)
    for bad, message in [
        (torch.tensor([3, 10]), "key_lengths must be 0 to 9: got 10"),
        (torch.tensor([3, -1]), "key_lengths must be 0 to 9: got -1"),
        (torch.tensor([3]), r"key_lengths has shape \[1\], expected \[2\]"),
        (torch.tensor([3.0, 4.0]), "key_lengths must be int32 or int64: got torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention_decode(q, k, k, bad)
