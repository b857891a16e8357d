"""Packed sequences: each alone gives the same numbers; lengths of 0, checks of cu_seqlens, gradients."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops.functional import attention_varlen, scaled_dot_product_attention
from tests.attention.calls import check_rule

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [(70, 90), (1, 33), (0, 5), (64, 64), (5, 0), (20, 7)]
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (9, 4)},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout_p": 0.3},
    "all": {"is_causal": True, "window": (30, None), "softcap": 3.0, "alibi_slopes": torch.tensor([0.3, 0.1]), "dropout_p": 0.2},
}


def cumulative(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def packed(dtype, device, lengths, d=24, dv=16):
    sizes = [sum(n) for n in zip(*lengths)]
    q, k, v = (torch.randn(n, h, w).to(dtype) for n, h, w in ((sizes[0], 2, d), (sizes[1], 1, d), (sizes[1], 1, dv)))
    cu = [cumulative([n[i] for n in lengths]).to(device) for i in (0, 1)]
    return [t.to(device) for t in (q, k, v)], cu


def run(fn, tensors, cast, dout, **options):
    torch.manual_seed(5)
    leaves = [cast(t).detach().requires_grad_() for t in tensors]
    out, lse = fn(*leaves, **options)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, cast(dout))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_against_float64(device, option, dtype):
    lengths = [(9, 20), (0, 3), (3, 0)] if device.simt else LENGTHS
    tensors, (cu_q, cu_k) = packed(dtype, device.torch_device, lengths)
    dout = torch.randn(tensors[0].shape[0], 2, 16, device=device.torch_device).to(dtype)
    options = dict(OPTIONS[option], return_lse=True)

    def ours(q, k, v, **o):
        return attention_varlen(q, k, v, cu_q, cu_k, **o)

    def exactly(q, k, v, **o):
        with dlops.backend("torch"):
            return attention_varlen(q, k, v, cu_q, cu_k, **o)

    mine = run(ours, tensors, lambda t: t, dout, **options)
    single = run(exactly, tensors, lambda t: t, dout, **options)
    exact = run(exactly, tensors, torch.Tensor.double, dout, **options)
    for name, a, b, e in zip(("out", "lse", "dq", "dk", "dv"), mine, single, exact):
        check_rule(a, b, e, name, dtype)


def test_a_sequence_alone_gives_the_same_bits(device):
    tensors, (cu_q, cu_k) = packed(torch.float32, device.torch_device, [(9, 20), (6, 13)] if device.simt else LENGTHS)
    together = attention_varlen(*tensors, cu_q, cu_k, is_causal=True)
    q, k, v = tensors
    for b in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one = torch.zeros(2, dtype=torch.int32, device=q.device)
        cu = [one + torch.tensor([0, s.stop - s.start], dtype=torch.int32, device=q.device) for s in (rows, keys)]
        assert torch.equal(together[rows], attention_varlen(q[rows], k[keys], v[keys], *cu, is_causal=True))


def test_equals_the_padded_call(device):
    """key_lengths stand at the end of the keys as packed sequences do."""
    q, k, v = (torch.randn(2, 2, n, 16, device=device.torch_device) for n in (8, 30, 30))
    lengths = torch.tensor([30, 11], dtype=torch.int32, device=device.torch_device)
    want = scaled_dot_product_attention(q, k, v, is_causal=True, key_lengths=lengths)
    flat_k, flat_v = (torch.cat([t[b, :, :n] for b, n in enumerate(lengths.tolist())], dim=1).transpose(0, 1) for t in (k, v))
    cu_q, cu_k = (cumulative(n).to(device.torch_device) for n in ([8, 8], lengths.tolist()))
    ours = attention_varlen(q.transpose(1, 2).reshape(16, 2, 16), flat_k, flat_v, cu_q, cu_k, is_causal=True)
    torch.testing.assert_close(ours.reshape(2, 8, 2, 16).transpose(1, 2), want)


def test_no_sequences(device):
    q, k = (torch.randn(0, 2, 8, device=device.torch_device) for _ in range(2))
    cu = torch.zeros(1, dtype=torch.int32, device=device.torch_device)
    assert attention_varlen(q, k, k, cu, cu).shape == (0, 2, 8)


@pytest.mark.parametrize(
    "cu, message",
    [
        ([0, 3, 2, 7], "must ascend: got 3 and then 2"),
        ([0, 3, 6], r"cu_seqlens_q and cu_seqlens_k must be \[sequences \+ 1\]"),
        ([0, 3, 5, 6], "must end at the total length 7: got 6"),
        ([1, 3, 5, 7], "must start at 0: got 1"),
    ],
)
def test_bad_cu_seqlens(cu, message):
    q, k = torch.randn(7, 2, 8), torch.randn(9, 2, 8)
    with pytest.raises(ValueError, match=message):
        attention_varlen(q, k, k, torch.tensor(cu), torch.tensor([0, 3, 5, 9]))


def test_other_bad_input():
    q, cu = torch.randn(7, 2, 8), torch.tensor([0, 7])
    with pytest.raises(ValueError, match="longer than the stated maximum 5"):
        attention_varlen(q, q, q, cu, cu, 5, 7)
    with pytest.raises(ValueError, match=r"query must be \[total, heads, d\]: got shape \[1, 7, 2, 8\]"):
        attention_varlen(q[None], q, q, cu, cu)
    with pytest.raises(ValueError, match="cu_seqlens_q must be int32 or int64: got torch.float32"):
        attention_varlen(q, q, q, cu.float(), cu)
    with pytest.raises(TypeError, match="cu_seqlens_q must be a tensor: got list"):
        attention_varlen(q, q, q, [0, 7], cu)
