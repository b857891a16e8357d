"""dlops.nn.KVCache: what is appended is what attention reads, whatever the lengths."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from dlops import functional, nn

B, HK, H, D = 3, 2, 4, 8


def rows(n, width=D):
    return torch.randn(B, HK, n, width)


def test_append_returns_views():
    cache = nn.KVCache(B, HK, 10, D, value_dim=6)
    k, v = rows(4), rows(4, 6)
    keys, values = cache.append(k, v)
    assert torch.equal(keys, k) and torch.equal(values, v)
    assert keys.data_ptr() == cache.keys.data_ptr() and values.data_ptr() == cache.values.data_ptr()
    more, more_v = rows(1), rows(1, 6)
    keys, values = cache.append(more, more_v)
    assert torch.equal(keys, torch.cat((k, more), 2)) and torch.equal(values, torch.cat((v, more_v), 2))
    assert cache.lengths.dtype is torch.int32 and cache.lengths.tolist() == [5] * B and cache.length == 5
    assert (cache.batch, cache.capacity) == (B, 10)


@pytest.mark.parametrize("inference", [False, True])
def test_decoding(inference):
    """Prefill and single steps, of sequences of different lengths, against attention over each sequence alone."""
    counts = [3, 5, 1]
    with torch.inference_mode(inference):
        cache = nn.KVCache(B, HK, 12, D)
        k, v = rows(5), rows(5)
        cache.append(k, v, counts)
        history = [(k[b, :, :n], v[b, :, :n]) for b, n in enumerate(counts)]
        for new in (1, 1, 3):
            q, k, v = torch.randn(B, H, new, D), rows(new), rows(new)
            keys, values = cache.append(k, v)
            out = functional.attention_decode(q, keys, values, cache.lengths)
            for b in range(B):
                history[b] = tuple(torch.cat((old, x[b]), 1) for old, x in zip(history[b], (k, v)))
                length = history[b][0].shape[1]
                seen = torch.ones(new, length, dtype=torch.bool).tril(length - new)
                expected = torch.nn.functional.scaled_dot_product_attention(
                    q[b : b + 1], *(x[None] for x in history[b]), attn_mask=seen, enable_gqa=True
                )
                torch.testing.assert_close(out[b : b + 1], expected, rtol=1e-5, atol=1e-5)
    assert cache.lengths.tolist() == [8, 10, 6]
    assert not cache.keys.is_inference()


def test_made_in_inference_mode_used_outside():
    with torch.inference_mode():
        cache = nn.KVCache(B, HK, 4, D)
        cache.append(rows(1), rows(1), torch.tensor([1, 0, 1]))
    cache.append(rows(1), rows(1))
    assert cache.lengths.tolist() == [2, 1, 2]


def test_no_gradients():
    cache = nn.KVCache(B, HK, 4, D)
    keys, values = cache.append(rows(2).requires_grad_(), rows(2).requires_grad_())
    assert not keys.requires_grad and not values.requires_grad


def test_reorder():
    cache = nn.KVCache(B, HK, 6, D)
    k, v = rows(3), rows(3)
    cache.append(k, v, [3, 2, 1])
    cache.reorder(torch.tensor([2, 0, 0]))
    assert cache.lengths.tolist() == [1, 3, 3]
    assert torch.equal(cache.keys[0, :, :1], k[2, :, :1]) and torch.equal(cache.values[2, :, :3], v[0])
    keys, _ = cache.append(rows(1), rows(1))
    assert torch.equal(keys[1, :, :3], k[0]) and cache.lengths.tolist() == [2, 4, 4]
    cache.reorder([0, 1, 2])
    assert cache.lengths.tolist() == [2, 4, 4]


def test_reset():
    cache = nn.KVCache(B, HK, 4, D)
    cache.append(rows(3), rows(3))
    cache.reset(1)
    assert cache.lengths.tolist() == [3, 0, 3]
    k = rows(1)
    keys, _ = cache.append(k, rows(1))
    assert torch.equal(keys[1, :, :1], k[1]) and cache.lengths.tolist() == [4, 1, 4]
    cache.reset()
    assert cache.lengths.tolist() == [0, 0, 0] and cache.length == 0
    with pytest.raises(IndexError, match="sequence 3 of a batch of 3"):
        cache.reset(3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies(duplicate):
    cache = nn.KVCache(B, HK, 4, D, dtype=torch.bfloat16)
    cache.append(rows(2).bfloat16(), rows(2).bfloat16())
    other = duplicate(cache)
    other.append(rows(1).bfloat16(), rows(1).bfloat16())
    assert cache.lengths.tolist() == [2] * B and other.lengths.tolist() == [3] * B
    assert "capacity=4" in repr(other) and "length=3" in repr(other)


def test_a_full_cache_is_left_as_it_was():
    cache = nn.KVCache(B, HK, 4, D)
    cache.append(rows(3), rows(3), [3, 1, 2])
    before = cache.keys.clone()
    with pytest.raises(RuntimeError, match="sequence 0 has 3 of 4 positions filled, 2 more do not fit"):
        cache.append(rows(2), rows(2))
    assert torch.equal(cache.keys, before) and cache.lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.append(rows(2)[:2], rows(2)), r"k has shape \[2, 2, 2, 8\], expected \[3, 2, new, 8\]"),
        (lambda cache: cache.append(rows(2), rows(2, 6)), r"v has shape \[3, 2, 2, 6\], expected \[3, 2, new, 8\]"),
        (lambda cache: cache.append(rows(2).half(), rows(2)), "k is torch.float16 on cpu, the cache torch.float32 on cpu"),
        (lambda cache: cache.append(rows(2), rows(1)), "k has 2 new positions, v 1"),
        (lambda cache: cache.append(rows(2), rows(2), [1, 2]), r"counts must be 3 numbers from 0 to 2: got \[1, 2\]"),
        (lambda cache: cache.append(rows(2), rows(2), [1, 2, 3]), "counts must be 3 numbers from 0 to 2"),
        (lambda cache: cache.reorder([0, 1]), r"order must be 3 numbers from 0 to 2: got \[0, 1\]"),
        (lambda cache: cache.reorder([0, 1, 3]), "order must be 3 numbers from 0 to 2"),
        (lambda cache: nn.KVCache(B, HK, 0, D), "capacity must be positive: got 0"),
    ],
    ids=range(9),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(nn.KVCache(B, HK, 4, D))
